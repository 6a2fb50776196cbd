"""Which findings the items of a report mention: by their words, and by the text tower where words say nothing."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

Words = frozenset[str]

_WORD = re.compile(r"[^\W\d_]+")
_OR = re.compile(r"\s+(?:or|and/or)\s+|[,;/]")
_SMALL_WORDS = frozenset("a an and are at by for from in is of on or seen the there this to with without".split())


def _words(text: str) -> list[str]:
    """Words in lower case, as singulars as far as their letters tell; small words are left out."""
    found = _WORD.findall(text.lower().replace("_", " "))
    return [_singular(word) for word in found if word not in _SMALL_WORDS]


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "shes", "ches")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def words_of(prompts: Mapping[str, Sequence[str]]) -> dict[str, list[Words]]:
    """
    Words that name each finding: alternatives, of each of which all have to be there.

    They come from the finding's name and its prompts, split where these say "or"; words of most findings' prompts, as those of
    a template, name none.

    Args:
        prompts: finding -> texts.

    >>> prompts = {"nodule": ["signs of nodules or nodular density"], "mass": ["signs of mass"], "gas": ["signs of gas"]}
    >>> words = words_of(prompts)
    >>> [sorted(one) for one in words["nodule"]]
    [['nodule'], ['density', 'nodular']]
    """
    counts = Counter(word for texts in prompts.values() for word in {w for text in texts for w in _words(text)})
    common = {word for word, count in counts.items() if count > len(prompts) / 2 and len(prompts) > 2}
    named = {}
    for name, texts in prompts.items():
        pieces = [_words(piece) for text in (name, *texts) for piece in _OR.split(text)]
        sets = [frozenset(piece) - common for piece in pieces]
        named[name] = list(dict.fromkeys(one for one in sets if one))
    return named


def find_mentions(
    items: Sequence[str], item_embeds: np.ndarray, prompts: Mapping[str, Sequence[str]], prompt_embeds: np.ndarray
) -> np.ndarray:
    """
    Whether each item mentions each finding: (K, M) of bool.

    An item mentions the findings whose words it has. Where it has those of none, it mentions the finding whose prompt is
    nearest by cosine, if it is nearer to that prompt than any other finding's prompt is: what is further off is about something
    else.

    Args:
        items: K texts that affirm something, as itemization leaves them.
        item_embeds: (K, P).
        prompts: finding -> texts.
        prompt_embeds: (M, P), from `encode_prompts`.
    """
    named = words_of(prompts)
    own = [set(_words(item)) for item in items]
    mentions = np.array([[any(one <= words for one in named[name]) for name in prompts] for words in own], dtype=bool)
    mentions = mentions.reshape(len(items), len(prompts))
    if not len(items) or len(prompts) < 2:
        return mentions
    near = similarities(item_embeds, prompt_embeds)
    between = similarities(prompt_embeds, prompt_embeds)
    np.fill_diagonal(between, -np.inf)
    nearest = near.argmax(1)
    is_near = near.max(1) > between.max(1)[nearest]
    rows = np.flatnonzero(~mentions.any(1) & is_near)
    mentions[rows, nearest[rows]] = True
    return mentions


def similarities(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosines (K, M) of embeddings (K, P) and (M, P)."""
    left, right = (
        np.asarray(own, dtype=np.float64) / np.linalg.norm(own, axis=1, keepdims=True) for own in (some, others)
    )
    return left @ right.T
