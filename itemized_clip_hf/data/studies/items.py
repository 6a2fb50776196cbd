"""Items of one study for one training step: random choice, or diverse sampling of captions (method 7.1 and 7.2)."""

import torch


def choose_items(items: list[str], max_items: int, generator: torch.Generator | None = None) -> list[str]:
    """At most `max_items` of them: in random order with a generator, the first ones without; never a repeat."""
    if generator is None:
        return items[:max_items]
    order = torch.randperm(len(items), generator=generator)[:max_items]
    return [items[i] for i in order.tolist()]


def sample_diverse(
    items: list[str],
    num_strings: int,
    generator: torch.Generator,
    max_merged: int = 3,
    consecutive_prob: float = 0.5,
    last_window: bool = False,
) -> list[str]:
    """
    Random single items and merges of several, for captions of pictures; harmful for radiology reports.

    Args:
        items: of one image, at least one.
        num_strings: how many strings to make; all of them count as real items.
        max_merged: most items in one string.
        consecutive_prob: share of the merges that take neighbours rather than random items.
        last_window: let the last run of neighbours be chosen too, which the released sampler never does.
    """

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    count = len(items)
    strings = []
    for _ in range(num_strings):
        merged = 1 + integer(min(max_merged, count))
        if merged == 1:
            chosen = [items[integer(count)]]
        elif torch.rand(1, generator=generator).item() < consecutive_prob:
            if merged >= count:
                chosen = items
            else:
                start = integer(count - merged + last_window)
                chosen = items[start : start + merged]
        else:
            chosen = [items[i] for i in torch.randperm(count, generator=generator)[:merged].tolist()]
        strings.append(join_sentences(chosen))
    return strings


def join_sentences(items: list[str]) -> str:
    """Items as one text, ". " between them."""
    return ". ".join(item.strip().rstrip(".") or item for item in items)
