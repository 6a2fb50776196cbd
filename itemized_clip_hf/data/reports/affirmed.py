"""What a clause that begins with a denial affirms further on: "No pneumothorax, left effusion"."""

import re
from collections.abc import Iterator

from .fields import is_attribute

_CUT = re.compile(r"[,(]\s*(?:(?:and|with|but|also)\s+)?|\s(?:with|and)\s+")
_SIDE = r"(?:left|right|bilateral\w*|bibasilar|bibasal|biapical|unilateral\w*)"
# How something begins that is there: side, place, size, age, or how certain it is.
_BEGINS = re.compile(
    rf"(?:an?\b|the\b|\d|{_SIDE}(?:[- ]sided)?\b"
    r"|(?:upper|lower|middle|mid|apical|basilar|basal|retrocardiac|perihilar|lingular)\b"
    r"|(?:small|tiny|trace|large|mild|moderate|severe|minimal|subtle|multiple|several|few|scattered|numerous|diffuse|patchy)\b"
    r"|(?:old|chronic|stable|unchanged|persistent|known|healed|healing|residual|new|interval|degenerative|postoperative|post-surgical)\b"
    r"|(?:possible|probable|likely|suspected|positive for|presence of|(?:question|suspicion) of|status post|s/p)\b)"
)
_SAYS_WHERE = re.compile(
    rf"\b(?:on|in|at|of) the (?:{_SIDE}|upper|lower|middle)\b|\bin (?:place|situ)\b|^[^,]*\b{_SIDE}\b"
)
_LIST_GOES_ON = re.compile(r"\bn?or\b|\band/or\b|\b(?:than|over|above|exceeding|greater|any|no|without)\b|>")
_NAMES_SOMETHING = re.compile(
    r"\b(?:process(?:es)?|findings?|patholog\w+|changes?|complications?|diseases?|disorders?|malalignment)\b"
)


def places(text: str, abnormal: re.Pattern, verbs: re.Pattern) -> Iterator[tuple[int, int]]:
    """
    (end of the denial, start of what may be affirmed) in a clause in lower case, in order.

    What follows has to name something abnormal with its side, place, size, age or certainty, and have no verb: in "no mass,
    left nodule was seen" the verb belongs to both. An "or" says that the list of what is denied goes on.
    """
    for cut in _CUT.finditer(text):
        before, after = text[: cut.start()], text[cut.end() :].rstrip(" .)")
        if not (abnormal.search(before) or _NAMES_SOMETHING.search(before)) or _LIST_GOES_ON.search(after):
            continue
        named = [found[0] for found in abnormal.finditer(after)]
        if not named or verbs.search(after) or (cut[0].strip() == "with" and all(map(is_attribute, named))):
            continue
        if _BEGINS.match(after) or _SAYS_WHERE.search(after):
            yield cut.start(), cut.end()
