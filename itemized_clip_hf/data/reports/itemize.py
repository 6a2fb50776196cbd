"""Report -> items: sentences, less statements of absence and normality, less repeats (method 7.1)."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...domains import Domain, load_domain
from .markup import plain_text
from .negation import (
    ABSENT,
    COMPARISON,
    FINDING,
    NO_CONTENT,
    NORMAL,
    RECOMMENDATION,
    TECHNIQUE,
    judge,
    names_abnormality,
)
from .rows import name_fields
from .sentences import split_sentences

DUPLICATE = "duplicate"
HISTORY = "history"
NORMAL_ITEM = "no significant abnormalities."
SECTION_REASONS = {
    "technique": TECHNIQUE,
    "comparison": COMPARISON,
    "indication": HISTORY,
    "recommendation": RECOMMENDATION,
    "administrative": NO_CONTENT,
}

STOP_WORDS = frozenset(
    "a an the this that these those there here it its they them their which who is are was were be been being has have had do "
    "does in on at of to for from by with and or as into within also some very can could may observed seen detected noted "
    "present found appears appear appearance".split()
)
NUMBER_WORDS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
SIDES = frozenset("left right both bilateral".split())
# Texts that differ in one of these differ, however much else they share.
TELLING_WORDS = SIDES | frozenset(
    "upper lower middle anterior posterior medial lateral superior inferior proximal distal apical basal no not without many "
    "few several increased decreased larger smaller new stable red green blue white black yellow brown gray grey".split()
)
_ACCOMPANIED = re.compile(
    r",?\s+(?:and\s+)?with\s+(?P<second>(?:an?\s+|(?:mild|minimal|moderate|marked|severe|extensive|prominent|significant|some)\s+)*"
    r"(?:surrounding|associated|accompanying|adjacent|perilesional|resultant|resulting|secondary)\b)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+")


@dataclass(frozen=True)
class Removed:
    """
    A part of the report that is no item.

    Args:
        start, end: place in the report, in characters.
        text: the words as they stand in the report.
        reason: one of `negation.REASONS`, "duplicate", or "history" (what stands under a heading such as "Indication:").
    """

    start: int
    end: int
    text: str
    reason: str


@dataclass(frozen=True)
class ItemizedReport:
    """
    Args:
        items: findings in the report's order and words, white space made plain; the domain's normal item where there is nothing
            to find; none where the report says nothing at all.
        spans: place of each item in the report, in characters; None for the normal item, which stands nowhere.
        removed: everything else, in the report's order.
        is_normal: whether the report states absence or normality and no finding.
    """

    items: list[str]
    spans: list[tuple[int, int] | None]
    removed: list[Removed]
    is_normal: bool

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def itemize_report(report: str, domain: str | Domain | None = None, threshold: float = 0.8) -> ItemizedReport:
    """
    Items of one radiology report, by rules.

    Args:
        report: text of the report, or its findings and impression joined by an empty line.
        domain: name of the domain whose normal rule decides what the item of a normal report says; without one it is
            "no significant abnormalities.", which every radiology domain recognises. A domain without a normal rule has no
            normal item: `is_normal` is False and there are no items.
        threshold: share of common words from which on a later item repeats an earlier one; see `repeats`.
    """
    if isinstance(domain, str):
        domain = load_domain(domain)
    plain = name_fields(plain_text(report))
    kept: list[tuple[int, int]] = []
    removed: list[Removed] = []

    def remove(start: int, end: int, reason: str) -> None:
        start, end = plain.span(start, end)
        removed.append(Removed(start, end, report[start:end], reason))

    for sentence in split_sentences(plain.text):
        reason = SECTION_REASONS.get(sentence.section or "")
        if reason:
            remove(sentence.start, sentence.end, reason)
            continue
        for clause in judge(sentence.text):
            start, end = sentence.start + clause.start, sentence.start + clause.end
            verdict = clause.verdict
            if verdict == FINDING and domain and domain.is_normal([_plain(plain.text[start:end])]):
                verdict = NORMAL
            if verdict == FINDING:
                kept += split_accompanied(plain.text, start, end)
            else:
                remove(start, end, verdict)
    texts = [_plain(plain.text[start:end]) for start, end in kept]
    firsts = repeats(texts, threshold)
    for span, first in zip(kept, firsts):
        if first is not None:
            remove(*span, DUPLICATE)
    removed.sort(key=lambda part: part.start)
    items = [text for text, first in zip(texts, firsts) if first is None]
    spans: list[tuple[int, int] | None] = [plain.span(*span) for span, first in zip(kept, firsts) if first is None]
    is_normal = not items and any(part.reason in (ABSENT, NORMAL) for part in removed)
    if is_normal:
        item = normal_item(domain)
        items, spans, is_normal = ([item], [None], True) if item else ([], [], False)
    return ItemizedReport(items, spans, removed, is_normal)


def split_accompanied(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """
    Places of a finding and of those that go with it: "a mass with surrounding edema" are two items, "a mass with irregular
    margins" is one. Both parts have to name an abnormality.
    """
    for found in _ACCOMPANIED.finditer(text, start, end):
        parts = text[start : found.start()], text[found.end() : end]
        if all(any(map(names_abnormality, _TOKEN.findall(part.lower()))) for part in parts):
            return [(start, found.start()), *split_accompanied(text, found.start("second"), end)]
    return [(start, end)]


def itemize_captions(captions: str | Sequence[str], threshold: float = 0.8) -> ItemizedReport:
    """
    Captions of one picture without exact and near repeats, in their own words; the first of each is kept (method 7.1).

    Args:
        captions: list of captions, or one string with a caption per sentence. Places count in the list joined by line ends.
        threshold: as in `itemize_report`.
    """
    spans: list[tuple[int, int]] = []
    if isinstance(captions, str):
        text = captions
        spans = [(s.start, s.end) for s in split_sentences(text)]
    else:
        text = "\n".join(captions)
        start = 0
        for caption in captions:
            left, right = len(caption) - len(caption.lstrip()), len(caption.rstrip())
            if any(map(str.isalnum, caption)):
                spans.append((start + left, start + right))
            start += len(caption) + 1
    firsts = repeats([text[slice(*span)] for span in spans], threshold)
    kept = [span for span, first in zip(spans, firsts) if first is None]
    removed = [Removed(*span, text[slice(*span)], DUPLICATE) for span, first in zip(spans, firsts) if first is not None]
    return ItemizedReport([_plain(text[slice(*span)]) for span in kept], list(kept), removed, False)


def normal_item(domain: str | Domain | None = None) -> str | None:
    """The item that says that there is nothing to find; None for a domain that has no normal rule."""
    if isinstance(domain, str):
        domain = load_domain(domain)
    if domain is None or domain.is_normal([NORMAL_ITEM]):
        return NORMAL_ITEM
    known = [*domain.normal_rule.get("first_item", ()), *domain.normal_rule.get("only_item", ())]
    return next((item for item in known if domain.is_normal([item])), None)


def repeats(texts: Sequence[str], threshold: float = 0.8) -> list[int | None]:
    """
    For every text the number of the earlier one that it repeats, or None.

    Two texts repeat each other where their words, stop words and plural endings aside, are the same to at least `threshold`
    (common words / all words of the two), their numbers, sides, directions, negations and colors agree in full, and the later
    one names no abnormality that the earlier does not.
    """
    firsts: list[int | None] = []
    seen: list[tuple[int, frozenset[str], frozenset[str]]] = []
    for number, text in enumerate(texts):
        words = content_words(text)
        telling = frozenset(word for word in words if word in TELLING_WORDS or word[0].isdigit())
        for earlier, known, known_telling in seen:
            similar = words == known or len(words & known) >= threshold * len(words | known)
            if similar and telling == known_telling and not _adds_abnormality(words, known):
                firsts.append(earlier)
                break
        else:
            seen.append((number, words, telling))
            firsts.append(None)
    return firsts


def _adds_abnormality(words: frozenset[str], known: frozenset[str]) -> bool:
    return any(names_abnormality(word) and not any(related(word, other) for other in known) for word in words - known)


def related(word: str, other: str) -> bool:
    """Whether two words look like forms of one: "calcified" and "calcification"."""
    common = 0
    for one, two in zip(word, other):
        if one != two:
            break
        common += 1
    return common >= max(4, 0.7 * min(len(word), len(other)))


def content_words(text: str) -> frozenset[str]:
    """Words that carry content: lower case, without plural endings, number words as digits."""
    words = (_singular(word) for word in _TOKEN.findall(text.lower()))
    return frozenset(NUMBER_WORDS.get(word, word) for word in words if word not in STOP_WORDS)


def _singular(word: str) -> str:
    if word in STOP_WORDS or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "os")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ses", "xes", "ches", "shes")) else word[:-1]


def _plain(text: str) -> str:
    return " ".join(text.split())
