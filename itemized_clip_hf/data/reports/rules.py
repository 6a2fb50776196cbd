"""Patterns of the words in `negation.yaml`, and what only looks like a negation."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# "No increase in ..." denies where it speaks of an organ, and affirms where it speaks of a lesion.
_NO_GROWTH = re.compile(
    r"\b(?:no|without(?: an?| any)?) (?:(?:\w+ly )?(?:significant|marked|obvious|definite|clear|interval"
    r"|apparent|considerable|further|additional"
    r"|major|substantial|appreciable|measurable|visible|relevant|evident|evidence of|signs? of"
    r"|new) )*(?:interval |size |volume )?"
    r"(?:increase|decrease|reduction|enlargement|growth|expansion|extension|widening|shrinkage)\b"
)
_OF_SIZE = re.compile(
    r"\s*(?:in (?:the |its |their )?(?:(?:size|number|extent|volume|dimensions?|diameter)(?:\s*(?:and|or|/)\s*)?)+\s*"
    r"(?:$|[.,;]|(?:compared|since|from|when|was|is|were|has|in the interval)\b)|(?:compared|since|from)\b)"
)


@dataclass(frozen=True)
class Rules:
    """Patterns made of the words in `negation.yaml`."""

    abnormal: re.Pattern
    normal: re.Pattern
    negations: re.Pattern
    verbs: re.Pattern
    hidden: re.Pattern
    lesions: re.Pattern
    organs: re.Pattern
    technique: re.Pattern
    unjudged: re.Pattern
    recommendation: re.Pattern
    comparison: re.Pattern
    filler: re.Pattern
    affirmed: re.Pattern
    denied: re.Pattern
    denied_quality: re.Pattern
    lacks: re.Pattern
    within_limits: re.Pattern
    removed_organ: re.Pattern
    relative: re.Pattern
    ends_with_verb: re.Pattern


@lru_cache
def load_rules() -> Rules:
    """The patterns of `negation.yaml`, read once."""
    import yaml

    words = yaml.safe_load((Path(__file__).parent / "negation.yaml").read_text(encoding="utf-8"))
    words = {name: re.split(r",\s+", value) if isinstance(value, str) else value for name, value in words.items()}

    def any_of(name: str) -> str:
        return rf"(?:{'|'.join(words[name])})"

    def whole(name: str) -> str:
        return rf"\b{any_of(name)}(?![\w-]*\w)"

    return Rules(
        abnormal=re.compile(whole("abnormal")),
        normal=re.compile(whole("normal")),
        negations=re.compile(whole("negations")),
        verbs=re.compile(whole("verbs")),
        hidden=re.compile(rf"\b{any_of('not_a_negation')}\b"),
        lesions=re.compile(whole("lesions")),
        organs=re.compile(rf"\b{any_of('organs')}\b"),
        technique=re.compile(any_of("technique")),
        unjudged=re.compile(any_of("unjudged")),
        recommendation=re.compile(any_of("recommendation")),
        comparison=re.compile(any_of("comparison")),
        filler=re.compile(rf"(?:(?:{any_of('filler')}|\d+)(?:[\s,.:;-]+|$))+"),
        **_affirmations_and_denials(any_of("seen"), any_of("organs"), any_of("not_abnormal")),
        relative=re.compile(r"\b(?:that|which|who|whose(?: \w+){1,2}|where\b[^,;]*)\s+$"),
        ends_with_verb=re.compile(whole("verbs") + r"\s*$"),
    )


def _affirmations_and_denials(seen: str, organs: str, not_abnormal: str) -> dict[str, re.Pattern]:
    """Patterns of verbs that affirm or deny what they speak of."""
    link = "(?:is|are|was|were|appears?|seems?|remains?)"
    auxiliary = "(?:is|are|was|were|be|been|being|has|have|had|could|can|does|do|did)"
    return dict(
        affirmed=re.compile(rf"(?<!not )(?<!n't )(?<!n’t )\b{auxiliary}(?: (?!not\b|no\b)\w+){{0,2}}? {seen}\b"),
        denied=re.compile(
            rf"\b{auxiliary}(?: not|n't|n’t)\b(?: \w+){{0,2}}? {seen}\b"
            rf"|\b(?:can ?|could ?)(?:not|n't|n’t) be {seen}\b|^not {seen}\b"
            rf"|\bno longer (?:\w+ )?{seen}\b"
            r"|\b(?:disappeared|resolved|vanished)\b"
        ),
        denied_quality=re.compile(rf"\b{auxiliary} ?(?:not|n't|n’t) (?:\w+ )?{not_abnormal}\b"),
        lacks=re.compile(
            rf"\b(?:do|does|did) ?(?:not|n't|n’t) (?:show|have|contain|reveal|demonstrate|include)\b"
            rf"|\bfail(?:s|ed)? to (?:show|reveal|demonstrate)\b|\b{link}(?: \w+ly)? without\b"
        ),
        within_limits=re.compile(
            rf"\b{link}(?: \w+)? within (?:the )?(?:normal limits|limits of normal)"
            r"(?: (?:in|for|of) [\w ]+)?\W*$"
        ),
        removed_organ=re.compile(
            rf"^(?:the |both |left |right |bilateral )*{organs} (?:is|are|was|were|could|can) ?not (?:be )?{seen}\b"
            r"|\bnot \w+ ?\(?(?:post ?|secondary to )?(?:\w+ )?(?:operat|surg|resect|cholecystectom)"
        ),
    )


def hide(text: str) -> str:
    """The text without what only looks like a negation; same length."""
    rules = load_rules()
    text = rules.hidden.sub(lambda found: "_" * len(found[0]), text)
    return _NO_GROWTH.sub(lambda found: "_" * len(found[0]) if _of_lesion(text[found.end() :]) else found[0], text)


def _of_lesion(text: str) -> bool:
    """Whether what did not grow is a lesion, or something named before: "no increase in the size of the aneurysm"."""
    return bool(_OF_SIZE.match(text) or load_rules().lesions.search(re.split(r"[,;]|\b(?:and|but|with) ", text)[0]))
