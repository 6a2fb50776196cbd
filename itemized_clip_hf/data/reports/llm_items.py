"""Items by a language model, without a network: prompts out, answers in, entries checked against their source (method 7.3)."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...domains import Domain, load_domain
from .itemize import SIDES, TELLING_WORDS, content_words, itemize_report, normal_item, related, repeats
from .markup import plain_text
from .negation import ABSENT, NORMAL, judge
from .sentences import split_sentences

# Words of plain sentences that need no support of their own.
NEUTRAL_WORDS = frozenset("visible shown show located image picture photo scene measuring patient".split())

MARKER = "||finalist||"
SEPARATOR = "|"

MALFORMED = "malformed JSON"
NO_ID = "no id"
UNKNOWN_ID = "unknown id"
DUPLICATE_ID = "duplicate id"
NO_ANSWER = "no answer"
NO_MARKER = "no marker"
NO_ENTRIES = "no entries"
UNSUPPORTED = "unsupported entry"
DENIED = "denied by the report"
NORMAL_BESIDE_FINDINGS = "normal beside findings"
REPEATED = "repeated entry"
NOTHING_LEFT = "no entry left"
REASONS = (
    *(MALFORMED, NO_ID, UNKNOWN_ID, DUPLICATE_ID, NO_ANSWER, NO_MARKER, NO_ENTRIES),
    *(UNSUPPORTED, DENIED, NORMAL_BESIDE_FINDINGS, REPEATED, NOTHING_LEFT),
)

CAPTION_INSTRUCTION = f"""\
You are given several captions of one image. Write a list of entries about the image, following these rules.
1. Draft at least five entries, each a plain sentence.
2. Use only information that at least two of the captions give. Leave out what a single caption says: it may be wrong.
3. Put every piece of information into exactly one entry.
4. Revise the draft in rounds until nothing needs to change. In each round, state why you revise. For each entry name the \
captions that support it and count them; delete entries with fewer than two. Take details that another entry already gives out \
of an entry and keep the rest of it. Merge entries that give similar attributes of the same subject. Name the main objects and \
properties of each entry, and see to it that no two entries have the same focus.
5. End with one line that starts with {MARKER} and holds the entries, separated by {SEPARATOR}"""

REPORT_INSTRUCTION = f"""\
You are given a radiology report. Write a list of the abnormal findings that it states, following these rules.
1. One finding per entry, as a short plain sentence with its place, side and size where the report gives them.
2. Use only what the report says, in its own words as far as you can. Add no interpretation, no number and no side of your own.
3. Drop statements that something is absent or normal, remarks on technique and earlier examinations, and advice. \
Keep findings that the report calls possible or probable, and say that they are.
4. Put every finding into exactly one entry, also where the report mentions it twice.
5. Revise the draft until nothing needs to change: for each entry name the sentences that support it, and delete entries that \
have none.
6. If the report states no abnormal finding, the only entry is: {{normal}}
7. End with one line that starts with {MARKER} and holds the entries, separated by {SEPARATOR}"""


@dataclass(frozen=True)
class Rejected:
    """
    An answer, or one entry of it, that is not used.

    Args:
        line: number of the line in the file of answers, from 1.
        id: whose answer it is, where that is known.
        reason: one of `REASONS`.
        detail: what was found and what was expected.
        content: the line, answer or entry itself.
    """

    line: int
    id: str | None
    reason: str
    detail: str
    content: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def make_prompt(source: str | Sequence[str], kind: str = "report", normal: str | None = None) -> list[dict[str, str]]:
    """
    Messages (system, user) that ask for the items of one report or of one picture's captions.

    Args:
        source: the report, or the list of captions.
        kind: "report" or "captions".
        normal: the item of a normal report.
    """
    if kind == "captions":
        captions = [source] if isinstance(source, str) else source
        text = "\n".join(f"Caption {number}: {caption.strip()}" for number, caption in enumerate(captions, 1))
        instruction = CAPTION_INSTRUCTION
    elif kind == "report":
        text = source if isinstance(source, str) else "\n\n".join(source)
        instruction = REPORT_INSTRUCTION.replace("{normal}", normal or normal_item() or "")
    else:
        raise ValueError(f"the kind of text is {kind!r}, expected 'report' or 'captions'.")
    return [{"role": "system", "content": instruction}, {"role": "user", "content": text}]


def parse_answer(answer: str) -> list[str] | None:
    """Entries after the last marker of an answer; None where there is no marker."""
    if MARKER not in answer:
        return None
    entries = answer.rsplit(MARKER, 1)[1].split(SEPARATOR)
    return [entry for entry in (" ".join(entry.split()) for entry in entries) if any(map(str.isalnum, entry))]


def read_answers(
    lines: Iterable[str],
    sources: Mapping[str, str | Sequence[str]],
    kind: str = "report",
    domain: str | Domain | None = None,
) -> tuple[dict[str, list[str]], list[Rejected]]:
    """
    Verified items of every answer, and everything that was rejected.

    Args:
        lines: JSON objects, one a line, with `id` and the model's text under `answer` or `content`, or under `messages` as the
            last message of the assistant.
        sources: id -> report or captions, as they went into the prompts.
        kind: "report" or "captions".
        domain: whose normal rule recognizes the entry of a normal report.

    The entry of a normal report becomes the domain's normal item. An entry that its source does not support is rejected by
    itself; an answer is rejected whole where no entry is left. Of two answers with one id the first that holds is used.
    """
    domain = load_domain(domain) if isinstance(domain, str) else domain
    accepted: dict[str, list[str]] = {}
    rejected: list[Rejected] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, answer = _parse_line(line.strip(), sources, accepted)
            accepted[name] = _verify(name, answer, sources[name], kind, domain, number, rejected)
        except _Rejection as rejection:
            rejected.append(
                Rejected(number, rejection.name, rejection.reason, rejection.detail, rejection.content or line.strip())
            )
    return accepted, rejected


class _Rejection(Exception):  # noqa: N818  it is the outcome of a check rather than an error
    """Why a line is not used; `content` is what is wrong, the whole line if None."""

    def __init__(self, reason: str, detail: str, name: str | None = None, content: str | None = None):
        super().__init__(detail)
        self.reason, self.detail, self.name, self.content = reason, detail, name, content


def _parse_line(
    line: str, sources: Mapping[str, str | Sequence[str]], accepted: Mapping[str, list[str]]
) -> tuple[str, str]:
    """Id and text of an answer."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _Rejection(MALFORMED, f"expected a JSON object: {error}") from None
    if not isinstance(row, dict):
        raise _Rejection(MALFORMED, f"expected a JSON object, found {type(row).__name__}")
    if row.get("id") is None:
        raise _Rejection(NO_ID, f"expected the field 'id', found {sorted(row)}")
    name = str(row["id"])
    if name not in sources:
        raise _Rejection(UNKNOWN_ID, f"no report has the id {name!r}", name)
    if name in accepted:
        raise _Rejection(DUPLICATE_ID, f"an earlier line holds an answer for {name!r}", name)
    answer = _answer_of(row)
    if answer is None:
        raise _Rejection(NO_ANSWER, f"expected text under 'answer', 'content' or 'messages', found {sorted(row)}", name)
    return name, answer


def _verify(
    name: str,
    answer: str,
    source: str | Sequence[str],
    kind: str,
    domain: Domain | None,
    line_number: int,
    rejected: list[Rejected],
) -> list[str]:
    """Entries of an answer that hold; the others are added to `rejected`."""
    entries = parse_answer(answer)
    if entries is None:
        raise _Rejection(NO_MARKER, f"the answer has no {MARKER}", name, answer)
    if not entries:
        raise _Rejection(NO_ENTRIES, f"there is nothing after {MARKER}", name, answer)
    items = []
    for entry, problem in zip(entries, _problems(entries, source, kind, domain)):
        if problem:
            rejected.append(Rejected(line_number, name, *problem, entry))
        else:
            normal = normal_item(domain) if kind == "report" and states_normality(entry, domain) else None
            items.append(normal or entry)
    if not items:
        raise _Rejection(NOTHING_LEFT, f"none of {len(entries)} entries holds", name, answer)
    return items


def states_normality(entry: str, domain: Domain | None) -> bool:
    """Whether an entry is the normal item of the domain, or one that its normal rule recognizes."""
    item = normal_item(domain)
    return bool(item and entry.rstrip(".").lower() == item.rstrip(".")) or bool(domain and domain.is_normal([entry]))


def _answer_of(row: dict[str, Any]) -> str | None:
    messages = row.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        last = messages[-1].get("content") if messages[-1].get("role") == "assistant" else None
    else:
        last = None
    return next((text for text in (row.get("answer"), row.get("content"), last) if isinstance(text, str)), None)


def _problems(
    entries: list[str], source: str | Sequence[str], kind: str, domain: Domain | None
) -> Iterator[tuple[str, str] | None]:
    """Reason and detail for each entry that does not hold, None for the others."""
    if kind == "captions":
        check: _Captions | _Report = _Captions([source] if isinstance(source, str) else source)
    else:
        check = _Report(source if isinstance(source, str) else "\n\n".join(source), domain)
    problems = [check.problem(entry, alone=len(entries) == 1) for entry in entries]
    held = [number for number, problem in enumerate(problems) if problem is None]
    for number, first in zip(held, repeats([entries[i] for i in held])):
        if first is not None:
            problems[number] = (REPEATED, f"says the same as {entries[held[first]]!r}")
    return iter(problems)


class _Captions:
    """Each content word of an entry has to occur in at least two different captions."""

    def __init__(self, captions: Sequence[str]):
        different = {content_words(caption) for caption in captions} - {frozenset()}
        self.captions = list(different)

    def problem(self, entry: str, alone: bool) -> tuple[str, str] | None:
        """Why an entry does not hold: reason and detail."""
        counts = {word: sum(_occurs(word, caption) for caption in self.captions) for word in sorted(_claims(entry))}
        if not counts:
            return UNSUPPORTED, "it has no word that could be checked"
        missing = [f"{word} ({count})" for word, count in counts.items() if count < 2]
        return (UNSUPPORTED, f"fewer than two of the captions say: {', '.join(missing)}") if missing else None


class _Report:
    """
    Every content word, number, measurement and side of an entry has to occur in the report; sides near the entry's other words.

    An entry that is all in a clause of absence or normality, and in no two neighboring sentences otherwise, is denied.
    """

    def __init__(self, report: str, domain: Domain | None):
        self.domain = domain
        report = plain_text(report).text
        self.itemized = itemize_report(report, domain)
        self.words = content_words(report)
        self.measures = _measures(report)
        stated: list[frozenset[str]] = []
        self.denied: list[frozenset[str]] = []
        for sentence in split_sentences(report):
            words: frozenset[str] = frozenset()
            for clause in judge(sentence.text):
                found = content_words(sentence.text[clause.start : clause.end])
                if clause.verdict in (ABSENT, NORMAL):
                    self.denied.append(found)
                else:
                    words |= found
            stated.append(words)
        self.neighbors = [first | second for first, second in zip(stated, [*stated[1:], frozenset()])]

    def problem(self, entry: str, alone: bool) -> tuple[str, str] | None:
        """Why an entry does not hold: reason and detail; `alone`: the answer has no other."""
        if states_normality(entry, self.domain):
            return self._problem_of_normal(alone)
        words = _claims(entry)
        if not words:
            return UNSUPPORTED, "it has no word that could be checked"
        missing = sorted(word for word in words if not _occurs(word, self.words))
        missing += sorted(f"{number} {unit}" for number, unit in _measures(entry) - self.measures)
        if missing:
            return UNSUPPORTED, f"the report does not say: {', '.join(missing)}"
        if not any(_all_occur(words, near) for near in self.neighbors):
            if any(_all_occur(words, denied) for denied in self.denied):
                return DENIED, "it is in a statement of absence or normality"
        sides = _sides(words)
        others = words - SIDES
        if sides and not any(
            sides <= _sides(near) and 2 * sum(_occurs(word, near) for word in others) >= len(others)
            for near in self.neighbors
        ):
            return UNSUPPORTED, f"the report does not say this of: {', '.join(sorted(sides))}"
        return None

    def _problem_of_normal(self, alone: bool) -> tuple[str, str] | None:
        if not alone:
            return NORMAL_BESIDE_FINDINGS, "other entries name findings"
        if self.itemized.items and not self.itemized.is_normal:
            return NORMAL_BESIDE_FINDINGS, f"by the rules the report states: {self.itemized.items[0]}"
        return None


def _claims(entry: str) -> frozenset[str]:
    return content_words(entry) - NEUTRAL_WORDS


def _occurs(word: str, words: frozenset[str]) -> bool:
    """Whether the word is there, or one of its family: "calcified" for "calcification"."""
    if word in words:
        return True
    if word in TELLING_WORDS or word[0].isdigit():
        return word in ("both", "bilateral") and (bool(words & {"both", "bilateral"}) or {"left", "right"} <= words)
    return any(related(word, other) for other in words if other not in TELLING_WORDS)


def _all_occur(words: frozenset[str], among: frozenset[str]) -> bool:
    return all(_occurs(word, among) for word in words)


def _sides(words: frozenset[str]) -> frozenset[str]:
    return frozenset({"left", "right"} if words & {"both", "bilateral"} else words & {"left", "right"})


_MEASURE = re.compile(r"((?:\d+(?:[.,]\d+)?\s?(?:x|×|-|to|by)\s?)*\d+(?:[.,]\d+)?)\s?(mm|cm|ml|cc|hu|%)(?![a-z])")


def _measures(text: str) -> frozenset[tuple[str, str]]:
    """Numbers with their units; in "5 x 7 mm" both have it."""
    return frozenset(
        (number.replace(",", "."), unit)
        for numbers, unit in _MEASURE.findall(text.lower())
        for number in re.findall(r"\d+(?:[.,]\d+)?", numbers)
    )
