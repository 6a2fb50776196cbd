"""Reports -> sentences with their places in the report; knows lists, headings, abbreviations, decimals and quotes."""

import re
from dataclasses import dataclass

TITLES = tuple("dr prof assist assoc mr mrs ms st".split())
BEFORE_ANYTHING = (*TITLES, *"vs e.g i.e eg ie approx cf et.al al resp incl excl viz".split())
BEFORE_NUMBERS = tuple("no nos nr fig figs img im se ser ca c p pp vol sec".split())
BEFORE_LOWER_CASE = tuple(
    "etc lab max min avg diam lat ant post sup inf med bilat mm cm ml cc hu mg kg yr yrs mo wk".split()
)
SENTENCE_STARTS = tuple("the there no it its this these an a both all bilateral findings impression".split())
COUNTED = (
    *"segment segments level type grade stage group category phase zone station rib ribs section image and or to".split(),
    *BEFORE_NUMBERS,
)
SECTIONS = {
    "findings": "findings finding result results report description",
    "impression": "impression impressions conclusion conclusions opinion diagnosis summary",
    "technique": "technique procedure protocol examination exam method",
    "comparison": "comparison comparisons",
    "indication": "indication indications history clinical reason",
    "recommendation": "recommendation recommendations",
}
_SECTION_OF = {word: section for section, words in SECTIONS.items() for word in words.split()}
_HEADING = re.compile(
    rf"\s*(?P<word>{'|'.join(_SECTION_OF)})(?: (?:history|information|data|indication|for (?:the )?exam(?:ination)?))?\s*:\s*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"[•·▪◦]+|(?:(?<=\n)|^)[ \t]*[*\-–—](?=\s)")
_NUMBER = re.compile(r"(?:(?<=\s)|^)\(?(?P<number>\d{1,2})[.)](?:[ \t]+(?=[\w\"“])|(?=[A-Z]))")
_QUOTE = re.compile("[\"“”]|''")
_LINE_END = re.compile(r"\n\s*")
_FULL_STOP = re.compile(r"[.!?]+[\"”')\]]*(?=\s|$)|(?<=[a-z)])\.(?=[A-Z][a-z])")
_WORD_BEFORE = re.compile(r"[\w.]*\w$")
_LEFT_OPEN = re.compile(
    r"(?:,|\b(?:the|a|an|of|in|on|at|to|and|or|with|by|for|from|is|are|was|were|left|right))$", re.I
)
_EDGES = " \t\r\n\"“”'•·▪◦;,"


@dataclass(frozen=True)
class Sentence:
    """
    Args:
        start, end: place in the report in characters; `report[start:end] == text`.
        section: heading it stands under (a key of `SECTIONS`), or None.
    """

    start: int
    end: int
    text: str
    section: str | None = None


def split_sentences(report: str) -> list[Sentence]:
    """
    Sentences, list entries and quoted conclusions of a report, in order; headings and list marks are left out.

    A full stop ends a sentence unless it belongs to a decimal, an abbreviation, a numbered list or stands in parentheses. A
    line end does where the next line starts a new sentence or entry, so that hard-wrapped text stays whole.
    """
    if not isinstance(report, str):
        raise TypeError(f"expected the text of a report as a string, found {type(report).__name__}.")
    cuts = sorted({*_marks(report), *_quotes(report), *_line_ends(report)})
    sentences: list[Sentence] = []
    section = None
    start = 0
    for mark_start, mark_end in [*cuts, (len(report), len(report))]:
        for begin, end in _full_stops(report, start, max(start, mark_start)):
            heading = _HEADING.match(report, begin, end)
            while heading:
                section, begin = _SECTION_OF[heading["word"].lower()], heading.end()
                heading = _HEADING.match(report, begin, end)
            begin, end = _trim(report, begin, end)
            if any(map(str.isalnum, report[begin:end])):
                sentences.append(Sentence(begin, end, report[begin:end], section))
        start = max(start, mark_end)
    return sentences


def _full_stops(text: str, start: int, end: int):
    """Pieces of text[start:end] that end with a full stop or with `end`."""
    begin = start
    depth_at, depth = start, 0
    for stop in _FULL_STOP.finditer(text, start, end):
        depth = max(0, depth + text.count("(", depth_at, stop.start()) - text.count(")", depth_at, stop.start()))
        depth_at = stop.start()
        inside = depth > 0 and ")" in text[stop.start() : min(end, stop.start() + 200)]
        if (inside and ")" not in stop[0]) or _continues(text, begin, stop, end):
            continue
        depth = 0
        depth_at = stop.end()
        yield begin, stop.end()
        begin = stop.end()
    if begin < end:
        yield begin, end


def _continues(text: str, begin: int, stop: re.Match, end: int) -> bool:
    """Whether the sentence goes on after this full stop."""
    following = text[stop.end() : end].lstrip()
    if not following:
        return False
    if stop[0].startswith(("!", "?")):
        return following[0].islower()
    found = _WORD_BEFORE.search(text, begin, stop.start())
    word = found[0].lower() if found else ""
    next_word = re.split(r"\W", following, maxsplit=1)[0].lower()
    if word in BEFORE_ANYTHING:
        return True
    if word in BEFORE_NUMBERS:
        return following[0].isdigit()
    if word in BEFORE_LOWER_CASE:
        return following[0].islower() and next_word not in SENTENCE_STARTS
    if word.isdigit() and re.match(r"\d+ ?(?:mm|cm|m|%|x)\b", following):  # "1. 5 cm"
        return True
    if re.search(r"\d\.,\s?\d+$", text[begin : stop.start()]):  # "1., 2., 3. ribs"
        return True
    return bool(re.search(rf"\b(?:{'|'.join(TITLES)})\. +[A-Z]$", text[begin : stop.start()], re.I))


def _marks(text: str):
    """Bullets, and numbers of lists that count up from 1."""
    yield from (found.span() for found in _BULLET.finditer(text))
    expected = 1
    for found in _NUMBER.finditer(text):
        number = int(found["number"])
        before = text[: found.start()].rstrip()
        first = not before or before[-1] == ":" or "\n" in text[len(before) : found.start()]
        starts = first or before[-1] in '.!?;"“”•·)'
        last = before.split()[-1].lower().rstrip(".") if before else ""
        if number not in (1, expected) or (last in COUNTED and not first):
            continue
        if not text[found.end()].isupper() and not first and not (starts and number > 1):
            continue  # "a size of 1. 5 cm"
        if starts or number > 1:
            expected = number + 1
            yield found.span()


def _quotes(text: str):
    """Quotation marks that stand between sentences; those around words within a sentence are left alone."""
    for found in _QUOTE.finditer(text):
        before, after = text[: found.start()], text[found.end() :]
        left, right = before.rstrip()[-1:], after.lstrip()[:1]
        apart = after[:1].isspace() and (before[-1:].isspace() or right.isupper())
        if not left or not right or left in ".!?;" or apart:
            yield found.span()


def _line_ends(text: str):
    for found in _LINE_END.finditer(text):
        before, right = text[: found.start()].rstrip(), text[found.end() : found.end() + 1]
        ended = before[-1:] in ("", ".", "!", "?", ":", '"', "”")
        if ended or not right or found[0].count("\n") > 1 or (right.isupper() and not _LEFT_OPEN.search(before)):
            yield found.span()


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] in _EDGES:
        start += 1
    while end > start and text[end - 1] in _EDGES:
        end -= 1
    return start, end
