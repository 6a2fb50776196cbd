"""Headings of radiology reports, with and without a colon, and how far the text under one goes."""

import re
from collections.abc import Iterator, Sequence

# Section -> how its heading is worded. What stands under the headings of `FRAME` is no finding.
SECTIONS = {
    "findings": (
        r"(?:(?:ct|mri?|chest|imaging|radiolog\w+|radiographic|other|additional|incidental|key|main|positive|pertinent|abdominal"
        r"|thoracic|brain|head|lung) ){0,2}findings?(?: (?:and|&) impressions?| ?/ ?impressions?)?"
        r"|results?|(?:radiology )?reports?"
        r"|description|observations?|interpretation|narrative|wet read|(?:final )?addend(?:um|a)|body of (?:the )?report"
    ),
    "impression": (
        r"(?:(?:final|overall|radiolog\w+|ct|mri?|main) )?(?:impressions?|conclusions?|opinions?"
        r"|diagnos[ie]s|summary|assessment)"
        r"(?: (?:and|&) (?:plan|recommendations?)| ?/ ?recommendations?)?"
    ),
    "technique": (
        r"(?:(?:ct|mri?|imaging|scan|scanning|x-ray|study|exam(?:ination)?|procedure) )?"
        r"(?:techniques?|procedures?|protocols?|examinations?|exams?|methods?|study|modality)"
        r"(?: (?:performed|type|name|description|title|comments?|protocol|details|technique))?"
        r"|type of (?:exam(?:ination)?|study)"
        r"|technical (?:factors|details|information|notes?|comments?)"
        r"|(?:iv |oral |intravenous )*contrast(?: (?:agent|material|medium|media|dose))?"
        r"|(?:radiation )?dose|dlp|ctdi(?:vol)?|views?"
    ),
    "comparison": (
        r"comparisons?(?: (?:with )?(?:stud(?:y|ies)|exam(?:ination)?s?|films?))?|compared (?:to|with)"
        r"|(?:prior|previous) (?:stud(?:y|ies)|exam(?:ination)?s?|imaging|films?|reports?)|priors"
    ),
    "indication": (
        r"(?:(?:clinical|medical|patient|past|surgical|brief|relevant|present|family|social|smoking|exam|study) )*"
        r"(?:indications?|history|hx|hpi|anamnesis)(?: (?:and|&) indications?| ?/ ?indications?"
        r"| of present illness| for (?:the |this )?\w+)?"
        r"|clinical(?: (?:and laboratory )?(?:information|info|data|details?|question|notes?|background"
        r"|diagnosis|findings?|presentation"
        r"|problem|concern|statement|context|summary|symptoms?))?"
        r"|reason(?: for (?:the |this )?(?:exam(?:ination)?|study|visit|referral|ct|mri|scan|request|order|test))?"
        r"|(?:admitting|admission|referring|referral|provisional|working|pre-?operative"
        r"|underlying) (?:medical )?(?:diagnos[ie]s|condition|reason)"
        r"|medical condition|presenting complaints?|chief complaints?|complaints?|symptoms?|question"
        r"|request(?: details)?|referral"
        r"|contraindications?(?: (?:for|to) [\w ]{1,25})?"
    ),
    "recommendation": r"recommendations?(?:\(s\))?|advice|plan|suggestions?|notifications?|communications?|critical results?",
    "administrative": (
        r"(?:patient(?:'s)? )?(?:name|id|age|sex|gender|dob|date of birth)|patient|mrn|accession(?: (?:number|no\.?|\#))?"
        r"|(?:exam(?:ination)?|study|report|order|dictation|transcription) (?:date|time|number|no\.?|id|status)|dates?|time"
        r"|(?:referring|ordering|attending|reading|interpreting|requesting|responsible)(?: \w+){0,2}"
        r"|radiologist|physician|resident|doctor|consultant|technologist|department|hospital|institution|signature|cc"
        r"|(?:electronically )?(?:signed|dictated|reported|approved|verified|transcribed|authori[sz]ed"
        r"|finali[sz]ed|interpreted|performed) (?:by|on|at)"
    ),
}
FRAME = ("technique", "comparison", "indication", "recommendation", "administrative")
BODY = ("findings", "impression")

_WORDS = "|".join(rf"(?P<{name}>{words})" for name, words in SECTIONS.items())
_LEAD = r"[\s#*=_~\[<>-]*"
_TAIL = r"[*_\]\)]*"
_WITH_COLON = re.compile(
    rf"{_LEAD}(?:\d{{1,2}}[.)] )?(?:{_WORDS})(?:\(s\)| ?\([^()\n]{{1,30}}\))?\s?{_TAIL}\s*:{_TAIL}\s*", re.IGNORECASE
)
_ALONE = re.compile(rf"{_LEAD}(?:{_WORDS})[ \t*=_~\]>#.;-]*(?=\n|$)\s*", re.IGNORECASE)
_BEFORE_TEXT = re.compile(
    rf"{_LEAD}(?:{_WORDS})(?:[ \t]*[*\]]+[ \t]*|[ \t]+[-–—=][ \t]*|[ \t]+|[.][ \t]+)(?=\S)", re.IGNORECASE
)
_WITHIN = re.compile(rf"(?<![\w-])(?:{_WORDS})(?:\(s\))?\s?:(?!\d)", re.IGNORECASE)
_LABEL_OF_BODY = re.compile(
    r"(?:[\w&,()/-]+ ){0,5}?(?:lungs?|pleura\w*|hearts?|cardi\w+|mediastin\w+|hil(?:um|a|ar)|airways?"
    r"|trachea|bones?|bony|osseous|skelet\w+|soft tissues?"
    r"|chest|thora\w+|abdom\w+|upper abdomen|liver|spleen|kidneys?|pancreas|brain\w*|parenchyma"
    r"|ventric\w+|sinuses|calvarium|skull|orbits?"
    r"|spine|vertebra\w*|vessels?|vascular|aorta|lines|tubes|devices|lymph nodes?|nodes|head|neck|pelvis)\b[^:\n]{0,40}:",
    re.IGNORECASE,
)


def match_heading(text: str, start: int, end: int) -> tuple[str, int] | None:
    """Section and end of the heading at this place, or None."""
    found = _WITH_COLON.match(text, start, end)
    if not found and (
        start == 0 or "\n" in text[max(0, start - 1) : start + 1] or text[:start].rstrip(" \t").endswith("\n")
    ):
        found = _ALONE.match(text, start, end)
        words = found[0].strip() if found else ""
        if not found or words[:1].islower() or (found.lastgroup == "administrative"):
            found = _BEFORE_TEXT.match(text, start, end)
            if found and not _stands_apart(text, found):
                found = None
    return (found.lastgroup or "", found.end()) if found else None


def _stands_apart(text: str, found: re.Match) -> bool:
    """Whether what looks like a heading before other text is one: in capitals before text that is not, or before a dash."""
    words, section = found[found.lastgroup or 0], found.lastgroup
    following = text[found.end() : found.end() + 40]
    if section == "administrative" or words[:1].islower():
        return False
    mark = found[0][len(found[0].rstrip().rstrip("-–—=*].").rstrip()) :].strip()
    if mark in ("*", "**", "]"):
        return True
    if mark:
        return words.isupper() or section in ("findings", "impression", "indication", "comparison", "technique")
    return (
        words.isupper()
        and len(words) > 4
        and bool(re.match(r"[A-Z]?[a-z_]|[A-Z] |\d|_", following))
        and not re.match(r"(?:of|is|are|was|were|for|with|consistent|and|in|on)\b", following)
    )


def heading_starts(text: str) -> Iterator[int]:
    """Places where a heading begins: on a line of its own, or in capitals or with a capital, and a colon, within a line."""
    for found in _WITHIN.finditer(text):
        before = text[: found.start()].rstrip(" \t")
        capitals = found[found.lastgroup or 0].isupper()
        if not (capitals or found.lastgroup in BODY or before[-1:] in ("", *"\n.:;!?")):
            continue
        if found[0][0].isupper() and not re.search(
            r"(?:\b(?:in|the|of|for|and|to|on|at|with|no)|,|\()$", before[-8:], re.IGNORECASE
        ):
            yield found.start()
    for line in re.finditer(r"^[ \t]*(?=\S)", text, re.MULTILINE):
        heading = match_heading(text, line.end(), len(text))
        if heading:
            yield line.start()
            yield heading[1]


_Pieces = Sequence[tuple[int, int, str | None]]


def sections_of(text: str, pieces: _Pieces) -> list[str | None]:
    """
    Section of each piece, given as (start, end, section of the last heading right before it).

    Text of the frame ("Indication: cough") ends at the next heading. Where no findings have a heading of their own, it also
    ends at an empty line, or with its first sentence where there is none, so that a report without headings is not lost.
    """
    sections: list[str | None] = []
    headings = [heading for _, _, heading in pieces]
    current: str | None = None
    opening, paragraph_ends = 0, False
    for number, (_, _, heading) in enumerate(pieces):
        if heading:
            current, opening = heading, number
            last = next((i for i in range(number + 1, len(pieces)) if headings[i]), len(pieces))
            paragraph_ends = any(_blank(text, pieces, i) for i in range(number + 1, last))
        elif current in FRAME:
            if _ends(text, pieces, number, opening, paragraph_ends):
                current = None
        sections.append(current)
    return sections


def _ends(text: str, pieces: _Pieces, number: int, opening: int, paragraph_ends: bool) -> bool:
    """
    Whether the text under a heading of the frame has ended before a piece.

    Args:
        opening: number of the piece that has the heading.
        paragraph_ends: whether there is an empty line before the next heading.
    """
    headings = [heading for _, _, heading in pieces]
    section = headings[opening]
    gap = text[pieces[number - 1][1] : pieces[number][0]]
    if section == "administrative":
        return "\n" in gap
    if "\n" in gap and _LABEL_OF_BODY.match(text, pieces[number][0]):
        return True
    later = headings[opening + 1 :]
    if "findings" in later:
        return False
    if paragraph_ends:
        return _blank(text, pieces, number)
    if "impression" in later or (set(BODY) & set(headings[:opening])):
        return False
    lines = "\n" in text[pieces[opening][0] : pieces[-1][1]]
    return "\n" in gap or not lines


def _blank(text: str, pieces: _Pieces, number: int) -> bool:
    """Whether there is an empty line before a piece."""
    return bool(re.search(r"\n[ \t]*\n", text[pieces[number - 1][1] : pieces[number][0]]))
