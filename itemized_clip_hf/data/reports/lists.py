"""Marks of lists: bullets, dashes, numbers, letters, Roman numerals, boxes and bars -> places at which a report is cut."""

import re
from collections.abc import Callable, Iterator

BEFORE_NUMBERS = tuple("no nos nr fig figs img im se ser ca c p pp vol sec".split())
COUNTED = (
    *"segment segments level type grade stage group category phase zone station rib ribs section image and or to".split(),
    *BEFORE_NUMBERS,
)
_BULLETS = "•·▪◦‣⁃●○■□▶►➢➤❖✓✔✗→∙⋅◆◇\uf0b7"
_BULLET = re.compile(rf"[{_BULLETS}]+")
_DASH = re.compile(
    r"(?:^|(?<=:[ ]))[ \t]*(?:[-–—−*+>]{1,2}|o(?=[ \t]+[A-Z])|\\-)[ \t]*(?=[^\W\d_]|[(\"“\[]|\d)", re.MULTILINE
)
_INNER_DASH = re.compile(r"(?<=\s)[-–—*+](?=\s+[A-Z0-9])")
_NUMBER = re.compile(
    r"(?:(?<=[\s.;,:)])|^)[(\[#]?(?P<number>\d{1,2})(?P<mark>[.)\]/:]"
    r"|[ \t]?[-–](?!\d))(?:[ \t]*\n?[ \t]+(?=[\w\"“(~<>])|(?=[^\W\d_]))"
)
_BARE_NUMBER = re.compile(r"^[ \t]*(?P<number>\d{1,2})[ \t]+(?=[A-Z][a-z]|[A-Z]{3})", re.MULTILINE)
_CIRCLED = re.compile("[①-⑳❶-❿⓵-⓾]")
_LETTER = re.compile(r"(?:(?<=[\s.;,:)])|^)\(?(?P<letter>[A-Za-z])[.)](?:[ \t]+(?=[\w\"“(])|(?=[A-Z][a-z]))")
_ROMAN = re.compile(r"(?:(?<=[\s.;,:)])|^)\(?(?P<roman>[IVX]{1,5}|[ivx]{1,5})[.)](?:[ \t]+(?=[\w\"“(])|(?=[A-Z][a-z]))")
_ROMANS = {name: n for n, name in enumerate("i ii iii iv v vi vii viii ix x xi xii xiii xiv xv".split(), 1)}
_BOX = re.compile(r"\[[ \t_]{0,3}\]|\[[xX✓✔]\]|[☐☑☒]|(?<=\s)\([ \t]{1,3}\)|\([xX✓]\)")
_VALUES = (
    "none|no|nil|negative|neg|absent|not (?:seen|present|identified|detected|observed|visuali[sz]ed)"
    "|normal|unremarkable|clear|yes|present"
    "|positive|intact|n/?a"
)
_FIELD_VALUE = re.compile(rf"\s*(?:{_VALUES})\b\W*$", re.IGNORECASE)
_NEXT_FIELD = re.compile(r"(?:[,;]\s+|(?<=\b)\s+)(?=[A-Z][A-Za-z/ -]{2,40}?:\s)")
_AFTER_VALUE = re.compile(rf":\s*(?:{_VALUES})[.,;]?$", re.IGNORECASE)


def list_marks(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of every mark of a list; what stands on its two sides are entries of their own."""
    yield from (found.span() for found in _BULLET.finditer(text))
    yield from (found.span() for found in _CIRCLED.finditer(text))
    yield from _dashes(text)
    yield from _numbers(text)
    yield from _bare_numbers(text)
    yield from _chain(
        text,
        _LETTER,
        lambda found: ord(found["letter"].lower()) - ord("a") + 1,
        lambda found: found["letter"].isupper(),
    )
    yield from _chain(
        text, _ROMAN, lambda found: _ROMANS.get(found["roman"].lower(), 0), lambda found: found["roman"].isupper()
    )
    yield from _boxes(text)
    yield from _cells(text)
    yield from _fields(text)


def _line_of(text: str, at: int) -> tuple[int, int]:
    end = text.find("\n", at)
    return text.rfind("\n", 0, at) + 1, len(text) if end < 0 else end


def _starts_entry(text: str, at: int) -> bool:
    """Whether an entry may begin here: at the start of a line, or behind a mark that ends a sentence."""
    before = text[:at].rstrip(" \t")
    return not before or before[-1] in '\n.:;!?•·)"“”'


def _dashes(text: str) -> Iterator[tuple[int, int]]:
    """Dashes that open a line, and those between the entries of such a line."""
    found = list(_DASH.finditer(text))
    letters = sum(not text[mark.end()].isdigit() for mark in found)
    for mark in found:
        spaced = mark[0][-1:].isspace() or not mark[0].strip("-–—−*+> \t")
        if text[mark.end()].isdigit() and not spaced and (mark[0].strip() in "+>" or not letters):
            continue  # "-5 HU"
        if mark[0].strip() == ">" and text[mark.end()].isdigit():
            continue
        yield mark.span()
        end = _line_of(text, mark.end())[1]
        for inner in _INNER_DASH.finditer(text, mark.end(), end):
            if not _FIELD_VALUE.match(text, inner.end(), end):
                yield inner.span()


def _numbers(text: str) -> Iterator[tuple[int, int]]:
    """Numbers of lists that count up from 1."""
    expected = 1
    for found in _NUMBER.finditer(text):
        number = int(found["number"])
        before = text[: found.start()].rstrip()
        first = not before or before[-1] == ":" or "\n" in text[len(before) : found.start()]
        starts = first or before[-1] in '.!?;"“”•·)'
        last = before.split()[-1].lower().rstrip(".") if before else ""
        if number not in (1, expected) or (last in COUNTED and not first):
            continue
        mark = found["mark"].strip()
        if mark in "/:-–" and not starts:
            continue
        if not text[found.end()].isupper() and not first and not (starts and number > 1):
            continue  # "a size of 1. 5 cm"
        if starts or number > 1:
            expected = number + 1
            yield found.span()


def _bare_numbers(text: str) -> Iterator[tuple[int, int]]:
    """Numbers without a mark, at the start of lines that count 1, 2, ..."""
    found = list(_BARE_NUMBER.finditer(text))
    if len(found) > 1 and [int(mark["number"]) for mark in found] == list(range(1, len(found) + 1)):
        yield from (mark.span() for mark in found)


def _chain(
    text: str, pattern: re.Pattern[str], value: Callable[[re.Match[str]], int], case: Callable[[re.Match[str]], bool]
) -> Iterator[tuple[int, int]]:
    """Letters or numerals that count up from the first, at least two of them and of one case."""
    chain: list[re.Match] = []
    for found in pattern.finditer(text):
        if not _starts_entry(text, found.start()):
            continue
        if chain and value(found) == len(chain) + 1 and case(found) == case(chain[0]):
            chain.append(found)
        elif value(found) == 1:
            if len(chain) > 1:
                yield from (mark.span() for mark in chain)
            chain = [found]
    if len(chain) > 1 or (chain and chain[0][0].rstrip().endswith(")") and not text[: chain[0].start()].strip()):
        yield from (mark.span() for mark in chain)


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    """Boxes to tick part their line: before each where the line opens with one, else behind each."""
    for found in _BOX.finditer(text):
        start, end = _line_of(text, found.start())
        before = text[start : found.start()]
        opening = _BOX.search(text[start:end])
        if opening and not re.search(r"\w", text[start : start + opening.start()]):
            yield found.start(), found.start()
        elif ":" not in before and "=" not in before:
            yield found.end(), found.end()


def _cells(text: str) -> Iterator[tuple[int, int]]:
    """Bars and tabs between the cells of a line, unless the line is a field: "Pneumothorax | none"."""
    for line in re.finditer(r"[^\n]+", text):
        if "|" not in line[0] and "\t" not in line[0]:
            continue
        bars = [found for found in re.finditer(r"(?<!\s)\s*\|+\s*|(?<=\S)[ \t]*\t[ \t]*(?=\S)", line[0])]
        cells = [cell for cell in re.split(r"\||\t", line[0]) if cell.strip()]
        if len(cells) == 2 and _FIELD_VALUE.match(cells[1]):
            inner = next((bar for bar in bars if line[0][: bar.start()].strip(" |")), None)
            bars = [bar for bar in bars if bar is not inner]
        for bar in bars:
            after = line[0][bar.end() : bar.end() + 1]
            if "|" in bar[0] or (after.isupper() or after.isdigit() or after in "-•[("):
                yield line.start() + bar.start(), line.start() + bar.end()


def _fields(text: str) -> Iterator[tuple[int, int]]:
    """Between fields that follow each other in one line: "Pneumothorax: none, Effusion: small"."""
    for found in _NEXT_FIELD.finditer(text):
        start, _ = _line_of(text, found.start())
        before = text[start : found.start()]
        if _AFTER_VALUE.search(before) or (found[0].strip() and re.match(r"[^:]{3,60}:", before)):
            yield found.start(), found.end()
