"""Sentences -> clauses that state a finding, and clauses that do not, with the reason (method 7.1)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from . import affirmed, fields
from .rules import hide, load_rules

FINDING = "finding"
ABSENT = "absent"
NORMAL = "normal"
TECHNIQUE = "technique"
RECOMMENDATION = "recommendation"
COMPARISON = "comparison"
NO_CONTENT = "no content"
REASONS = (ABSENT, NORMAL, TECHNIQUE, RECOMMENDATION, COMPARISON, NO_CONTENT)

_EDGES = " \t\r\n\"“”',;:•"
_CONTRAST = "but|however|although|though|whereas|yet|nevertheless|despite|in spite of"
_EXCEPTION = "(?:with the )?except(?:ion of| for)?|apart from|other than|aside from|in addition to"
_OPENING = re.compile(
    rf"(?:(?:and|while|also|(?:{_EXCEPTION})(?: (?:this|these|that|it|them|those))?|with|in addition|{_CONTRAST})\b[\s,]*)+",
    re.IGNORECASE,
)
_THERE = "(?:there (?:is|are|was|were) )?"
_GAP = r"(?<!\s)\s+"  # looked for at its first character only: long runs of spaces would take quadratic time
_BREAK = re.compile(
    rf"(?P<colon>:(?!(?<=\d:)\d)(?!\s+(?:{_CONTRAST}|{_EXCEPTION}|please|otherwise)\b))"
    rf"|(?P<strong>;|(?:[,:]\s+|{_GAP})(?:{_CONTRAST}|{_EXCEPTION}|please)\b)|(?P<rest>(?:[,:]\s+|{_GAP})otherwise\b)"
    rf"|(?P<negation>(?:,\s+|{_GAP})(?:and|with)\s+(?={_THERE}(?:no|without)\b)|,\s*(?={_THERE}(?:no|without|neither)\b)"
    rf"|{_GAP}(?=without\b))"
    rf"|(?P<dash>{_GAP}[-–—]+\s+)"
    rf"|(?P<weak>(?:,\s+|{_GAP})and\s+|,\s+)"
)
_LABEL = re.compile(r"notes?|conclusions?|results?|comments?|addendum|also|in addition")
# After "no hydrocephalus," such words begin something that is there, unless an "or" says that the list goes on.
_DENIAL = re.compile(r"[\s,]*(?:and )?no\b")
_ANEW = re.compile(
    r"\s*(?:\d|an?\b|mild|moderate|severe|minimal|old|chronic|stable|unchanged|persistent|known|small|tiny|trace|large|multiple|several"
    r"|few)(?!.*\bn?or\b)"
)
_NO_SUBJECT = re.compile(
    r"\s*(?:is|are|was|were|has|have|which|that|who|whose|where|some of which|the largest of which)\b"
)
_LEAD = re.compile(
    r"\s*(?:in|at|on|within|from|for|around|along|near|under|between|among|through|by|again|also|however|otherwise|specifically"
    r"|as a result)\b"
)
_OPENS_WITH_DENIAL = re.compile(r"\W*(?:there (?:is|are|was|were) )?(?:no|without|negative for|free of)\b")
_SUSPECTED = re.compile(
    r"(?:should|must|has to|have to|needs? to) be (?:\w+ )?(?:considered|excluded|ruled out|kept in mind|thought of|suspected)"
    r"|(?:^|\b(?:to|and|please|or) )(?:rule out|exclude|r/o)\b"
)
_COMPLAINT = re.compile(r"(?:(?:the )?(?:patient|pt|he|she|mother|father|family)\b[\w ]{0,30}?)?\bden(?:y|ies|ied)\b")
_RULED_OUT = re.compile(
    r"(?:(?<!to )(?<!should )(?<!must )(?<!cannot )\bbe |\b(?:is|are|was|were|been|being) )?(?:\b\w+ly )?"
    r"(?:ruled[- ]out|excluded|eliminated)\b(?! (?:from|by))"
)
_ADVISED = re.compile("evaluat|follow|correlat|clinic|control|differential|examin|verif|compar|recommend")
_UNCHANGED = re.compile("chang|differen|progress|regress|improve|previous|prior|old")


@dataclass(frozen=True)
class Clause:
    """
    Args:
        start, end: place in the sentence, in characters.
        verdict: `FINDING` or one of `REASONS`.
    """

    start: int
    end: int
    verdict: str


@lru_cache(maxsize=1 << 14)
def judge(sentence: str) -> tuple[Clause, ...]:
    """
    Clauses of one sentence in order, each with a verdict; together they cover all of its words.

    A sentence is parted at contrasts ("but", "except for", ";"), before negations, and at "and" or a comma where a statement of
    its own follows. A clause states a finding unless a rule of `negation.yaml` says that it states an absence, normality, how
    the images were made, advice or a bare comparison; neighbouring clauses of the same verdict are joined.
    """
    text = "".join(" " if c.isspace() else c.lower() if len(c.lower()) == 1 else c for c in sentence)
    text = re.sub(r"\bw/o(?! (?:iv )?contrast)", "no ", text)
    box = fields.read_box(text)
    if box:
        return tuple(_ticked(text, *box))
    field = _FIELD_VERDICTS.get(fields.read_field(text.strip(_EDGES), load_rules().abnormal, load_rules().organs) or "")
    if field:
        return tuple(_joined([Clause(0, len(text), field)], sentence))
    clauses = [clause for start, end in _statements(text) for clause in _clauses(text, start, end)]
    return tuple(_joined(clauses, sentence))


_FIELD_VERDICTS = {fields.DENIED: ABSENT, fields.NORMAL: NORMAL, fields.UNSTATED: NO_CONTENT}


def _ticked(text: str, state: str, rest: str) -> Iterator[Clause]:
    """An entry with a box to tick; what an empty box stands before is denied if it is a finding, and says nothing otherwise."""
    start = max(0, text.find(rest))
    end = start + len(rest) if rest in text else len(text)
    clauses = judge(rest)
    found = any(clause.verdict == FINDING for clause in clauses)
    if state == fields.DENIED:
        yield Clause(start, end, ABSENT if found else NO_CONTENT)
    elif rest in text:
        yield from (Clause(start + clause.start, start + clause.end, clause.verdict) for clause in clauses)
    else:
        yield Clause(start, end, FINDING if found or not clauses else clauses[0].verdict)


def names_abnormality(word: str) -> bool:
    """Whether the word, in lower case, is among the names of abnormal things and deviations."""
    return bool(load_rules().abnormal.fullmatch(word))


def _depths(text: str) -> list[int]:
    """How deep in parentheses each character stands; 0 throughout where they do not match."""
    depth, depths = 0, []
    for character in text:
        depth = max(0, depth + (character == "(") - (character == ")"))
        depths.append(depth)
    return depths if depth == 0 else [0] * len(text)


def _pieces(text: str, masked: str) -> list[tuple[int, int, bool]]:
    """(start, end, whether a mere comma or "and" stands before it) of everything between possible breaks."""
    rules = load_rules()
    depths = _depths(text)
    pieces = []
    start, weak = 0, False
    for found in _BREAK.finditer(masked):
        kind, before = found.lastgroup, masked[start : found.start()]
        if depths[found.start()] or not before.strip():
            continue
        if kind == "colon" and not _introduces(before[-_LONGEST_REMARK:], masked[found.end() :]):
            continue
        if kind == "dash" and not (
            _OPENS_WITH_DENIAL.match(before)
            and rules.abnormal.search(before)
            and not rules.verbs.search(masked, found.end())
        ):
            continue
        if kind == "rest" and rules.ends_with_verb.search(before):  # "lungs are otherwise clear"
            continue
        if kind == "negation":
            without = masked[found.start() : found.end() + 8].find("without") >= 0
            if _only_says_where(before) or rules.ends_with_verb.search(before):
                continue
            if without and rules.verbs.search(masked, found.end()):  # "density without mass effect is seen"
                continue
        pieces.append((start, found.start(), weak))
        weak = kind == "weak"
        start = found.end() if weak else found.start()
    return [*pieces, (start, len(text), weak)]


_LONGEST_REMARK = 400
"""Characters before a colon that are looked at."""


def _introduces(before: str, after: str) -> bool:
    """Whether a colon parts a remark from a statement; "Liver: normal" stays whole."""
    rules = load_rules()
    if rules.technique.search(before) or not re.search("[a-z]", before) or _LABEL.fullmatch(before.strip(_EDGES)):
        return True
    return bool(rules.abnormal.search(before) and re.match(r"\s*(?:no|without)\b", after))


def _statements(text: str) -> list[tuple[int, int]]:
    """Places of the statements of a sentence: pieces without a verb of their own stay with the statement they belong to."""
    rules = load_rules()
    masked = hide(text)
    pieces = _pieces(text, masked)
    statements: list[tuple[int, int]] = []
    complete = False  # whether the last statement has its verb
    waiting = None  # start of the pieces that are subjects of the next statement
    for number, (start, end, weak) in enumerate(pieces):
        verb = bool(rules.verbs.search(masked, start, end))
        ends = verb or bool(rules.technique.search(text[start:end]))
        if not weak or not statements:
            if waiting is not None:
                statements.append((waiting, pieces[number - 1][1]))
                waiting = None
            statements.append((start, end))
            complete = ends
        elif not complete and _DENIAL.match(text, statements[-1][0]) and _ANEW.match(text, start):
            statements.append((start, end))
            complete = ends
        elif complete and verb and not _NO_SUBJECT.match(text, start):
            statements.append((start if waiting is None else waiting, end))
            waiting = None
        elif complete and _is_subject_of_next(text, masked, pieces[number : number + 20]):
            waiting = start if waiting is None else waiting
        else:
            statements[-1] = (statements[-1][0], end)
            complete = complete or ends
    if waiting is not None:
        statements[-1] = (statements[-1][0], len(text))
    return statements


def _is_subject_of_next(text: str, masked: str, pieces: list[tuple[int, int, bool]]) -> bool:
    """Whether the first piece names an abnormality of which a later one says something: "plaques and thickening are seen"."""
    rules = load_rules()
    start, end, _ = pieces[0]
    if rules.verbs.search(masked, start, end) or not rules.abnormal.search(masked, start, end):
        return False
    for later, (start, end, weak) in enumerate(pieces):
        if not weak or re.match(r"\s*n?or\b", text[start:end]):
            return False
        if later and rules.verbs.search(masked, start, end):
            return not _NO_SUBJECT.match(text, start)
    return False


def _only_says_where(text: str) -> bool:
    """Whether the words only say where or how: "In the upper lobe"."""
    return bool(_LEAD.match(text) and not load_rules().verbs.search(text) and not text.endswith("with"))


def _clauses(text: str, start: int, end: int) -> Iterator[Clause]:
    """One statement with its verdict, parted once more where it names an abnormality beside normality or advice."""
    verdict = _verdict(text[start:end])
    if verdict == ABSENT:
        yield from _denied(text, start, end)
        return
    advice = verdict == RECOMMENDATION
    rules = load_rules()
    cue = rules.recommendation if advice else rules.normal
    masked = hide(text[start:end])
    if verdict in (NORMAL, RECOMMENDATION, FINDING) and cue.search(masked) and rules.abnormal.search(masked):
        depths = _depths(text[start:end])
        cuts = [cut.start() for cut in re.finditer(r",\s|\s(?:and|with)\s", masked) if not depths[cut.start()]]
        for cut in reversed(cuts) if advice else cuts:
            left, right = masked[:cut], masked[cut:]
            if advice and right.startswith(",") and cue.search(right) and not _ADVISED.search(left):
                right = rules.abnormal.sub("", right)
            if _names_only(left, rules.abnormal, cue) and _names_only(right, cue, rules.abnormal):
                yield Clause(start, start + cut, FINDING)
                yield Clause(start + cut, end, RECOMMENDATION if advice else NORMAL)
                return
            if not advice and _names_only(left, cue, rules.abnormal) and _names_only(right, rules.abnormal, cue):
                yield Clause(start, start + cut, NORMAL)
                yield Clause(start + cut, end, FINDING)
                return
    yield Clause(start, end, verdict)


def _denied(text: str, start: int, end: int) -> Iterator[Clause]:
    """A statement of absence, parted where something begins that is there."""
    rules = load_rules()
    for stop, begin in affirmed.places(hide(text[start:end]), rules.abnormal, rules.verbs):
        if _verdict(text[start : start + stop]) == ABSENT:
            yield Clause(start, start + stop, ABSENT)
            closing = text.find(")", start + begin, end) if text[start + stop] == "(" else -1
            closing = closing if not re.search(r"\w", text[closing:end]) else -1
            yield Clause(start + begin, closing if closing > 0 else end, FINDING)
            return
    yield Clause(start, end, ABSENT)


def _names_only(text: str, this: re.Pattern[str], other: re.Pattern[str]) -> bool:
    return bool(this.search(text)) and not other.search(text)


def _verdict(clause: str) -> str:
    """Verdict of one clause in lower case."""
    rules = load_rules()
    text = re.sub(r"\([^)]*\)", lambda found: "_" * len(found[0]), clause).strip(_EDGES + ".!?")
    opening = _OPENING.match(text)
    if opening:
        text = text[opening.end() :]
    if not re.search("[a-z]", text):
        return FINDING if rules.abnormal.search(clause) else NO_CONTENT
    masked = hide(text)
    abnormal = rules.abnormal.search(masked)
    if rules.removed_organ.search(clause.strip(_EDGES)):
        return FINDING
    field = _FIELD_VERDICTS.get(fields.read_field(text, rules.abnormal, rules.organs) or "")
    if field:
        return field
    if abnormal and _SUSPECTED.search(text):
        return FINDING
    advice = rules.recommendation.search(text)
    if advice and not rules.affirmed.search(text[: advice.start()]):
        return RECOMMENDATION
    if _COMPLAINT.match(text):
        return NO_CONTENT
    if _is_absent(masked):
        return ABSENT
    return _verdict_of_statement(text, masked, abnormal)


def _verdict_of_statement(text: str, masked: str, abnormal: re.Match[str] | None) -> str:
    """Verdict of a clause that neither denies nor advises."""
    rules = load_rules()
    unjudged = rules.unjudged.search(text)
    if unjudged and (not abnormal or _says_so(masked, unjudged.start())):
        return TECHNIQUE
    if not abnormal and rules.technique.search(text):
        return NORMAL if rules.normal.search(masked) else TECHNIQUE
    if rules.normal.search(masked) and (not abnormal or rules.within_limits.search(masked)):
        return NORMAL
    unchanged = rules.hidden.search(text)
    if not abnormal and (rules.comparison.search(text) or (unchanged and _UNCHANGED.search(unchanged[0]))):
        return COMPARISON
    return NO_CONTENT if rules.filler.fullmatch(text.strip("_ ")) else FINDING


def _affirmed(text: str) -> bool:
    """Whether the clause says of its own subject that it is seen."""
    rules = load_rules()
    return any(not rules.relative.search(text[: found.start()]) for found in rules.affirmed.finditer(text))


def _says_so(text: str, at: int) -> bool:
    """Whether the words at this place are what the clause says, rather than a remark on something that it names as seen."""
    rules = load_rules()
    seen = _affirmed(text) or re.match(r"(?:.*\b)?there (?:is|are|was|were)\b", text)
    return not seen and bool(rules.verbs.search(text)) and not rules.relative.search(text[:at])


def _is_absent(text: str) -> bool:
    """Whether the clause denies what it names."""
    if text.startswith("without ") or not _affirmed(text) and _is_denied(text):
        return True
    return _is_ruled_out(text) or any(_denies(text, negation) for negation in load_rules().negations.finditer(text))


def _is_denied(text: str) -> bool:
    """Whether a verb denies what the clause is about: "is not seen"."""
    rules = load_rules()
    if any(not rules.relative.search(text[: found.start()]) for found in rules.denied.finditer(text)):
        return True
    quality = rules.denied_quality.search(text)
    before = text[: quality.start()] if quality else ""
    return bool(quality) and not rules.lesions.search(before) and not rules.relative.search(before)


def _is_ruled_out(text: str) -> bool:
    """Whether an abnormality is ruled out, absent or lacking."""
    rules = load_rules()
    ruled_out = _RULED_OUT.search(text)
    if ruled_out and rules.abnormal.search(text[: ruled_out.start()]) and not _SUSPECTED.search(text):
        return True
    lacks = rules.lacks.search(text)
    absent = re.search(r"\babsent\b", text)
    if absent and (rules.abnormal.search(text, 0, absent.start()) or "patholog" in text[: absent.start()]):
        return True
    before = text[: lacks.start()] if lacks else ""
    return bool(lacks) and not rules.abnormal.search(before) and not rules.relative.search(before)


def _denies(text: str, negation: re.Match[str]) -> bool:
    """Whether a negation is about the clause rather than about a part of it."""
    rules = load_rules()
    before = text[: negation.start()]
    named = rules.abnormal.search(before)
    if re.search(r"\b(?:with|having|by|to|than|of)\s*(?:an? )?$", before):  # qualifies what stands before it
        return not named and not rules.affirmed.search(text, negation.end())
    return not named or _only_says_where(before) or before.rstrip().endswith("-")


def _joined(clauses: list[Clause], sentence: str) -> Iterator[Clause]:
    """Neighbours of one verdict as one clause; white space, quotes and, before findings, conjunctions are trimmed off."""
    joined: list[Clause] = []
    for clause in clauses:
        if joined and joined[-1].verdict == clause.verdict:
            joined[-1] = Clause(joined[-1].start, clause.end, clause.verdict)
        else:
            joined.append(clause)
    for clause in joined:
        start, end = clause.start, clause.end
        while start < end and sentence[start] in _EDGES:
            start += 1
        opening = _OPENING.match(sentence, start, end)
        if opening and clause.verdict == FINDING and opening.end() < end:
            start = opening.end()
        while end > start and sentence[end - 1] in _EDGES:
            end -= 1
        if any(map(str.isalnum, sentence[start:end])):
            yield Clause(start, end, clause.verdict)
