"""Fields of structured reports: "Pneumothorax: none", "Effusion = absent", "[ ] Nodule", and texts that stand for no report."""

import re

MISSING = re.compile(
    r"\W*(?:none|nan|nat|nil|null|na|n/a|n\.a\.?|<na>|not (?:given|available|provided|applicable"
    r"|recorded|done|reported|stated|specified)"
    r"|none (?:available|given|provided|recorded|reported)|unknown|unavailable|missing|empty|pending"
    r"|no (?:report|text|data)(?: (?:available|given|provided))?"
    r"|report (?:not available|pending|unavailable|missing)|\#n/a|undefined|tbd|to follow|see (?:above"
    r"|below|report)|as above)?\W*",
    re.IGNORECASE,
)
_SEEN = (
    "(?:seen|present|identified|detected|visuali[sz]ed|observed|noted|found|evident|demonstrated"
    "|appreciated|suspected|visible|apparent)"
)
_NO = (
    rf"(?:none(?: {_SEEN}| evident| acute| significant| known)?|no|nil(?: {_SEEN})?|nope|negative|neg"
    rf"|-ve|\(-\)|absent|absence|false|0|n"
    rf"|(?:not|never|no longer) (?:\w+ly )?{_SEEN}|no evidence|not there|resolved|ruled out|excluded"
    rf"|unremarkable|normal|clear|denied|without)"
)
_NOT_STATED = re.compile(
    r"(?:-+|–|—|_+|\.+|n/?a|not (?:applicable|assessed|evaluated|reported|stated|given)|unknown|\?)"
)
_QUALIFIED = (
    r"(?: (?:on|in|at|bilaterally|either|both|the|left|right|side|sides|lungs?|today|currently|acute"
    r"|significant|of|this|study|exam(?:ination)?"
    r"|definite|large|definitely|suspicious|evidence|or|pathological|abnormality|abnormalities|at present))*"
)
_LABEL = r"(?P<label>[a-z(][\w /,&()'’-]{0,60}?)"
_FIELD = re.compile(
    rf"{_LABEL}\s*(?:[:=|\t]+|\s[-–—]+(?=\s|[a-z])|\s->|\.{{2,}}|\s{{2,}})\s*[\"'(\[]?(?P<value>{_NO}){_QUALIFIED}[)\]\"'.,;!]*"
)
_BARE = re.compile(rf"{_LABEL} \(?(?P<value>none|nil|neg|negative|-ve|\(-\)|absent|0|=0)\)?[.,;]*")
_REVERSED = re.compile(
    rf"(?P<value>absent|negative|not (?:seen|present|identified|detected|observed)|none|excluded"
    rf"|ruled out)\s*:\s*{_LABEL}[.,;]*"
)
_UNSTATED = re.compile(rf"{_LABEL}\s*[:=|]\s*(?P<value>{_NOT_STATED.pattern})?[.,;]*")
_DENIAL = re.compile(
    r"(?:no|without|w/o|negative for|free of|absence of|not any)\b(?! (?:\w+ ){0,2}?(?:changes?|resolution|doubt|longer))"
)
_ATTRIBUTE = re.compile(
    r"calcif|enhanc|mass effect|flow|cavit|edema|oedema|shift|invasion|invad|washout|extension|fat"
    r"|diffusion|restrict|septa|necro"
    r"|spicul|air|contrast|uptake|leak|ruptur|complicat|associated|surrounding|displace|tension|hemorrhag|haemorrhag"
)
_DEFINITE = re.compile(
    r"\d|\b(?:left|right|bilateral|small|large|mild|moderate|severe|tiny|the|an?|this|known|stable|new|in|of|at|upper|lower|is|are|was)\b"
)
_STATES = re.compile(
    r"\b(?:is|are|was|were|has|have|had|there|shows?|seen|noted|observed|detected|without)\b|^(?:no|not)\b"
)
_EMPTY_BOX = r"(?:\[[ \t_]*\]|☐|\([ \t]+\))"
_TICKED_BOX = r"(?:\[[xX✓✔]\]|[☑☒]|\([xX✓]\))"
_BOX_BEFORE = re.compile(rf"\s*(?:(?P<empty>{_EMPTY_BOX})|(?P<ticked>{_TICKED_BOX}))\s*(?P<rest>\w.*)", re.DOTALL)
_BOX_BEHIND = re.compile(rf"(?P<rest>[^\[\]☐☑☒:=]*?\w)[\s:=]*(?:(?P<empty>{_EMPTY_BOX})|(?P<ticked>{_TICKED_BOX}))\W*")
_CHOICE = re.compile(
    rf"(?P<label>[^:=\[\]☐☑☒]+)\s*[:=]?\s*(?=(?:{_EMPTY_BOX}"
    rf"|{_TICKED_BOX})).*{_TICKED_BOX}\s*(?P<value>[\w /]+?)\s*(?:[\[(☐☑☒].*|\W*)"
)

DENIED, NORMAL, UNSTATED, AS_GIVEN = "denied", "normal", "unstated", "as given"


def is_attribute(word: str) -> bool:
    """Whether a word in lower case names a property of a lesion rather than a lesion: "enhancement"."""
    return bool(_ATTRIBUTE.match(word))


def is_missing(text: str) -> bool:
    """Whether a text stands for a report that is not there: "nan", "N/A", "Not given."."""
    return bool(MISSING.fullmatch(text))


def read_field(text: str, abnormal: re.Pattern, organs: re.Pattern) -> str | None:
    """
    What a field in lower case says: `DENIED`, `NORMAL`, `UNSTATED`, or None where the text is no field or affirms.

    Args:
        abnormal, organs: names of abnormal things; organs whose own absence is a finding.
    """
    text = text.strip()
    if is_missing(text):
        return UNSTATED
    for pattern in (_FIELD, _BARE, _REVERSED):
        found = pattern.fullmatch(text)
        if found and not _STATES.search(found["label"]):
            gone = found["value"].startswith(("absent", "not", "no longer"))
            if gone and organs.search(found["label"]):
                return None
            return NORMAL if found["value"] in ("normal", "clear", "unremarkable") else DENIED
    found = _UNSTATED.fullmatch(text)
    if found and not _STATES.search(found["label"]) and len(found["label"].split()) < 5:
        return UNSTATED
    label, colon, value = text.partition(":")
    value = value.strip()
    if colon and not _STATES.search(label) and not _DEFINITE.search(label) and len(label.split()) < 5:
        if (
            _DENIAL.match(value)
            and abnormal.search(label)
            and not _ATTRIBUTE.search(value)
            and not re.search(r",|;|\bbut\b|\bexcept", value)
        ):
            return DENIED
    return None


def read_box(text: str) -> tuple[str, str] | None:
    """What a box to tick says of the rest of its entry, and that rest; None where there is none."""
    found = _CHOICE.fullmatch(text)
    if found:
        return AS_GIVEN, f"{found['label'].strip()}: {found['value'].strip()}"
    found = _BOX_BEFORE.fullmatch(text) or _BOX_BEHIND.fullmatch(text)
    if not found:
        return None
    return (DENIED if found["empty"] else AS_GIVEN), found["rest"]
