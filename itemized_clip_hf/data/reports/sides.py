"""Left and right of a text exchanged, for studies that are mirrored in training."""

import re
from collections.abc import Sequence

_OTHER = {"left": "right", "right": "left", "lt": "rt", "rt": "lt", "l": "r", "r": "l"}
_LOBES_AND_VESSELS = "ul|ll|uq|lq|ue|le|ica|eca|cca|mca|aca|pca|va|ij|mlo|cc"
_BEFORE, _AFTER = r"(?<![^\W_\d])", r"(?![^\W_\d])"
_WORD = re.compile(
    rf"{_BEFORE}(?:(?:left|right)(?=(?:sided|ness|wards?|most|s)?{_AFTER})|(?:lt|rt){_AFTER}"
    rf"|[lr](?=(?:{_LOBES_AND_VESSELS}){_AFTER}))",
    re.IGNORECASE,
)
_UNTOLD = (
    *("[lr](?![^\\W_])", "lr", "rl", "rml"),
    *("l[av]", "r[av]", "lad", "lcx", "[lr]ca", "[lr]vot", "[lr]bbb"),
    *("(?:left|right) (?:ventric|atri|heart|main|anterior desc|circumflex|bundle)\\w*",),
    *("right (?:now|away|after|before)", "(?:nothing|none|is|was|are|were) left", "left (?:over|alone|out|untreated)"),
    *("dext\\w*", "l(?:a)?evo\\w*", "sinist\\w*", "situs\\w*", "heterotax\\w*"),
    *("links\\w*", "rechts\\w*", "linke[rnms]?", "rechte[rnms]?", "gauches?", "droite?s?"),
    *("izquierd\\w*", "derech\\w*", "destr[aoie]", "esquerd\\w*", "direit\\w*"),
)
"""What has no counterpart on the other side, may be no side, or is a side in another language."""

_UNCLEAR = re.compile(rf"{_BEFORE}(?:{'|'.join(_UNTOLD)}){_AFTER}|[左右]", re.IGNORECASE)


def swap_sides(text: str) -> str | None:
    """
    A text with left and right exchanged, letter case kept; None where that cannot be told from its words.

    `left`, `right`, words made of them (`left-sided`, `rightward`), `Lt`, `Rt`, and abbreviations whose first letter is the
    side (`LUL`, `RMCA`) are exchanged. What has no counterpart on the other side (`RML`, the chambers of the heart,
    `dextrocardia`), a lone `L` or `R`, and words for sides in other languages make the whole text untold. Numbered vertebrae
    (`L4`) are not sides.

    >>> swap_sides("Large cyst in the left frontal lobe, RIGHT-sided shift, none in the LUL; L4/5 normal.")
    'Large cyst in the right frontal lobe, LEFT-sided shift, none in the RUL; L4/5 normal.'
    >>> swap_sides("consolidation of the RML") is None
    True
    >>> swap_sides("SAG_T1_LEFT")
    'SAG_T1_RIGHT'
    """
    if _UNCLEAR.search(text):
        return None
    return _WORD.sub(lambda found: _like(_OTHER[found[0].lower()], found[0]), text)


def swap_sides_of_all(texts: Sequence[str | None]) -> list[str | None] | None:
    """Every text with left and right exchanged, those that are None left as they are; None where one cannot be told."""
    swapped = [text if text is None else swap_sides(text) for text in texts]
    return None if any(new is None and old is not None for new, old in zip(swapped, texts)) else swapped


def _like(word: str, model: str) -> str:
    """A word in the letter case of another."""
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[0].isupper() else word
