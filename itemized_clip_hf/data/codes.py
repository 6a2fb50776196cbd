"""Codes that a scan can be refused with, and that `accept` knows."""

from collections.abc import Iterable

from ..specs import did_you_mean

REFUSALS = (
    "constant",
    "double-rescale",
    "inverted",
    "mask",
    "missing-rescale",
    "modality",
    "not-finite",
    "not-hu",
    "not-raw",
    "orientation-unknown",
    "sheared",
    "spacing",
    "two-orientations",
)


def known_codes(accept: Iterable[str]) -> frozenset[str]:
    """Codes to accept; ValueError where one of them is no code."""
    codes = frozenset([accept] if isinstance(accept, str) else accept or ())
    for code in sorted(codes - set(REFUSALS)):
        hint = did_you_mean(code, REFUSALS)
        raise ValueError(f"accept holds {code!r}, which no scan is refused with; known: {', '.join(REFUSALS)}.{hint}")
    return codes
