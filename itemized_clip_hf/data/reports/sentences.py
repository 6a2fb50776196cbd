"""Reports -> sentences with their places in the report; knows lists, headings, abbreviations, decimals and quotes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .headings import heading_starts, match_heading, sections_of
from .lists import BEFORE_NUMBERS, list_marks

TITLES = tuple("dr prof assist assoc mr mrs ms st".split())
BEFORE_ANYTHING = (*TITLES, *"vs e.g i.e eg ie approx cf et.al al resp incl excl viz".split())
BEFORE_LOWER_CASE = tuple(
    "etc lab max min avg diam lat ant post sup inf med bilat bil mm cm ml cc hu mg kg yr yrs mo wk rt lt neg susp prob poss "
    "art aa vv fx hx incr decr sm lg mod sev".split()
)
SIDES = ("l", "r", "lt", "rt")  # "L. ICA", "Rt. Hilum"
SENTENCE_STARTS = tuple("the there no it its this these an a both all bilateral findings impression".split())
_QUOTE = re.compile("[\"“”]|''")
_LINE_END = re.compile(r"\n\s*")
_FULL_STOP = re.compile(r"[.!?]+[\"”')\]>]*(?=\s|$)|(?<=[a-z)])\.(?=[A-Z][a-z])")
_WORD_BEFORE = re.compile(r"(?<![\w.])[\w.]*\w$")
_LEFT_OPEN = re.compile(
    r"(?:,|\b(?:the|an?|of|in|on|at|to|and|n?or|with|by|for|from|is|are|was|were|be|no|not|without|any|evidence"
    r"|suspicious|focal|acute|significant|new))$",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"(?:of|in|on|at|to|and|n?or|with|without|by|for|from|than|as|which|that|is|are|was|were|has|have|had|be|been|could|can|may"
    r"|compatible|consistent|suggest\w+|measuring|seen|noted|observed|detected|identified|present)\b(?!\s*:)",
    re.IGNORECASE,
)
_FIELD = re.compile(r"[A-Z][\w /-]{2,40}:\s")
_WRAPPED = 50  # characters: shorter lines are entries, not wrapped text
_EDGES = " \t\r\n\"“”'•·▪◦;,|>"


@dataclass(frozen=True)
class Sentence:
    """
    Args:
        start, end: place in the report in characters; `report[start:end] == text`.
        section: heading it stands under (a key of `headings.SECTIONS`), or None.
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
    headings = [(place, place) for place in heading_starts(report)]
    cuts = sorted({*list_marks(report), *_quotes(report), *_line_ends(report), *headings})
    pieces: list[tuple[int, int, str | None]] = []
    section = None
    start = 0
    for mark_start, mark_end in [*cuts, (len(report), len(report))]:
        for begin, end in _full_stops(report, start, max(start, mark_start)):
            while heading := match_heading(report, begin, end):
                section, begin = heading
            begin, end = _trim(report, begin, end)
            if any(map(str.isalnum, report[begin:end])):
                pieces.append((begin, end, section))
                section = None
        start = max(start, mark_end)
    sections = sections_of(report, pieces)
    return [Sentence(start, end, report[start:end], name) for (start, end, _), name in zip(pieces, sections)]


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
    if _abbreviates(text[begin : stop.start()], word, following, next_word):
        return True
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


def _abbreviates(before: str, word: str, following: str, next_word: str) -> bool:
    """Whether a single letter or a side stands before the full stop: "R. lower lobe", "C. difficile", "in the L. ICA"."""
    if next_word in SENTENCE_STARTS or not (len(word) == 1 and word.isalpha() or word in SIDES):
        return False
    if following[0].islower():
        return True
    opens = not before[: -len(word)].strip() or re.search(
        r"\b(?:the|in|of|at|on|and|or|to|from|with|an?)\s$", before[: -len(word)], re.I
    )
    return word in SIDES and bool(opens)


def _quotes(text: str):
    """Quotation marks that stand between sentences; those around words within a sentence are left alone."""
    for found in _QUOTE.finditer(text):
        before, after = text[: found.start()], text[found.end() :]
        left, right = before.rstrip()[-1:], after.lstrip()[:1]
        apart = after[:1].isspace() and (before[-1:].isspace() or right.isupper())
        if not left or not right or left in ".!?;" or apart:
            yield found.span()


def _line_ends(text: str) -> Iterator[tuple[int, int]]:
    """Line ends at which a sentence or an entry ends; runs of spaces before a capital stand for a lost line end."""
    width = max(map(len, text.split("\n")))
    capitals = not any(map(str.islower, text))
    for found in _LINE_END.finditer(text):
        before = text[text.rfind("\n", 0, found.start()) + 1 : found.start()].rstrip()
        following = text[found.end() : found.end() + 80].split("\n")[0]
        if found[0].count("\n") > 1 or not following or before[-1:] in ("", ".", "!", "?", ":", '"', "”"):
            yield found.span()
        elif _FIELD.match(following):
            yield found.span()
        elif not _LEFT_OPEN.search(before) and not _wrapped(before, following, width, capitals):
            yield found.span()
    for found in re.finditer(r"(?<=\S) {3,}(?=[A-Z])", text):
        if not _LEFT_OPEN.search(text[max(0, found.start() - 20) : found.start()]):
            yield found.span()


def _wrapped(before: str, following: str, width: int, capitals: bool) -> bool:
    """Whether a sentence goes on in the next line: its first word would not have fitted into this one."""
    if following[0].isupper() and not capitals:
        return bool(re.search(r"\b(?:left|right)$", before) and re.match(r"[A-Z]{2,}", following))
    if _GOES_ON.match(following):
        return True
    return width >= _WRAPPED and len(before) + 1 + len(following.split()[0]) > 0.85 * width


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] in _EDGES:
        start += 1
    while end > start and text[end - 1] in _EDGES:
        end -= 1
    return start, end
