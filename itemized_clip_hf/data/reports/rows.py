"""Rows of two cells, parted by a bar or a tab -> fields: "Effusion | Small left" reads "Effusion: Small left"."""

import re
from collections.abc import Iterator

from .markup import PlainText, replace
from .negation import names_abnormality

_CELL = re.compile(r"[^|\t\n]+")
_LABEL = re.compile(r"[^\W\d_][^.:;!?]{0,40}")
# A label names a thing; with a side, a size, a verb or a denial it is a statement of its own.
_STATEMENT = re.compile(
    r"\d|\b(?:left|right|bilateral|small|large|mild|moderate|severe|tiny|trace|acute|chronic|stable|new|old|multiple|several"
    r"|is|are|was|were|has|have|there|seen|noted|no|not|without|negative|denies)\b"
)
_DEVIATION = re.compile(r"increas|decreas|reduc|enlarg|dilat|prominen|elevat|low|larger|widen|abnormal")


def name_fields(plain: PlainText) -> PlainText:
    """
    The text with a colon between label and value of such rows.

    "Left effusion | Right nodule" is a list. So is "Effusion | Nodule", unless it stands in a table: where both cells name a
    finding, the row before or behind has to be a field, too.
    """
    rows = list(_rows(plain.text))
    sure = {number for number, start, end, both in rows if not both}
    fields = [(start, end, ": ") for number, start, end, both in rows if not both or {number - 1, number + 1} & sure]
    return replace(plain, fields)


def _rows(text: str) -> Iterator[tuple[int, int, int, bool]]:
    """Number of the line, start and end of what parts its two cells, and whether both name a finding."""
    place = 0
    for number, line in enumerate(text.split("\n")):
        if "|" in line or "\t" in line:
            cells = [cell for cell in _CELL.finditer(line) if cell[0].strip()]
            if len(cells) == 2:
                label, value = cells[0][0].strip(), cells[1][0].strip()
                if _is_label(label) and any(map(str.isalnum, value)):
                    start = place + cells[0].start() + len(cells[0][0].rstrip())
                    end = place + cells[1].end() - len(cells[1][0].lstrip())
                    yield number, start, end, _names_finding(label) and _names_finding(value)
        place += len(line) + 1


def _is_label(text: str) -> bool:
    return bool(_LABEL.fullmatch(text)) and len(text.split()) < 6 and not _STATEMENT.search(text.lower())


def _names_finding(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text.lower())
    return any(names_abnormality(word) and not _DEVIATION.match(word) for word in words)
