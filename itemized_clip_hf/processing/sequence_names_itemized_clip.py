"""Sequence names ("AX_T2 FLAIR") -> character ids for the name encoder (method 2.5)."""

import numpy as np

ALPHABET = "abcdefghijklmnopqrstuvwxyz_+-0123456789.*(),"
LENGTH = 110
UNKNOWN_ID = len(ALPHABET) + 1
TERMINATOR_ID = len(ALPHABET) + 2
MISSING_NAME = "unk"

_IDS = {character: position + 1 for position, character in enumerate(ALPHABET)}


def encode_scan_name(name: str | None) -> np.ndarray:
    """(110,) int64: one id a character, 45 for characters outside the alphabet, 46 at the end, 0 behind it."""
    text = (MISSING_NAME if name is None else name)[: LENGTH - 1].lower()[: LENGTH - 1]
    ids = np.zeros(LENGTH, dtype=np.int64)
    ids[: len(text)] = [_IDS.get(character, UNKNOWN_ID) for character in text]
    ids[len(text)] = TERMINATOR_ID
    return ids
