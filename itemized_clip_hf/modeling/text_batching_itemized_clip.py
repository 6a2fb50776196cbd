"""Items of a batch through the text tower: the real ones only, in groups of similar length, and back in the order they came."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling

MAX_GROUPS = 4
"""Passes of the text tower over items of similar length."""

MIN_GROUP_SIZE = {"cpu": 5, "cuda": 32}
"""Texts that are worth a pass of their own, by kind of device; other kinds are taken for a GPU."""

TextEncoder = Callable[[torch.Tensor, torch.Tensor], BaseModelOutputWithPooling]
"""Token ids and attention mask (M, T) -> hidden states (M, T, C) and embeddings (M, P)."""


def group_by_length(mask: torch.Tensor, max_groups: int) -> list[tuple[torch.Tensor, int]]:
    """
    Texts of similar length together, so that little padding is computed.

    Args:
        mask: (M, T), True for tokens.
        max_groups: as many groups as texts may be divided into.

    Returns:
        row numbers of each group, and the columns that it needs. One group where several would save less than a tenth.

    >>> mask = torch.tensor([[1, 1, 1, 1]] * 5 + [[1, 0, 0, 0]] * 5)
    >>> [(sorted(rows.tolist()), columns) for rows, columns in group_by_length(mask, max_groups=2)]
    [([5, 6, 7, 8, 9], 1), ([0, 1, 2, 3, 4], 4)]
    """
    min_size = MIN_GROUP_SIZE.get(mask.device.type, MIN_GROUP_SIZE["cuda"])
    count = max(min(max_groups, len(mask) // min_size), 1)
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths, order = (mask.bool() * positions).amax(1).sort()
    longest = max(int(lengths[-1]), 1)
    groups = [
        (rows, max(int(group_lengths[-1]), 1)) for rows, group_lengths in zip(order.chunk(count), lengths.chunk(count))
    ]
    if len(groups) == 1 or sum(len(rows) * columns for rows, columns in groups) > 0.9 * len(mask) * longest:
        return [(torch.arange(len(mask), device=mask.device), longest)]
    return groups


def encode_by_length(
    encode: TextEncoder, input_ids: torch.Tensor, attention_mask: torch.Tensor, max_groups: int
) -> BaseModelOutputWithPooling:
    """
    Outputs of texts (M, T), in their order, encoded in groups of similar length; see `group_by_length`.

    Args:
        encode: the text tower.
        input_ids, attention_mask: (M, T).
        max_groups: 1 where intermediate outputs of the tower are wanted, which cannot be put together again.
    """
    groups = group_by_length(attention_mask, max_groups)
    outputs = [encode(input_ids[rows, :columns], attention_mask[rows, :columns]) for rows, columns in groups]
    return outputs[0] if len(outputs) == 1 else merge_groups(outputs, [rows for rows, _ in groups])


def merge_groups(outputs: list[BaseModelOutputWithPooling], rows: list[torch.Tensor]) -> BaseModelOutputWithPooling:
    """
    Outputs of groups of texts in the texts' order.

    Args:
        outputs: of each group; hidden states may be left out.
        rows: numbers of each group's texts.

    Returns:
        embeddings (M, P) and, unless they are left out, hidden states (M, T, C), padded with zeros to the longest group.
    """
    order = torch.cat(rows).argsort()
    embeds = torch.cat([_present(group.pooler_output) for group in outputs])[order]
    if any(group.last_hidden_state is None for group in outputs):
        return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=embeds)
    states = [_present(group.last_hidden_state) for group in outputs]
    columns = max(group.shape[1] for group in states)
    padded = [F.pad(group, (0, 0, 0, columns - group.shape[1])) for group in states]
    return BaseModelOutputWithPooling(last_hidden_state=torch.cat(padded)[order], pooler_output=embeds)


def _present(output: Any) -> torch.Tensor:
    """An output that the library declares as optional, but that is there."""
    tensor: torch.Tensor = output
    return tensor


def real_rows(item_mask: torch.Tensor) -> torch.Tensor:
    """Numbers of the real items among all slots (B * K) of a mask (B, K)."""
    return item_mask.flatten().nonzero()[:, 0]


def fill_slots(values: torch.Tensor, rows: torch.Tensor, item_mask: torch.Tensor) -> torch.Tensor:
    """
    Values of the real items in the slots of all items, zeros in the others.

    Args:
        values: (R, ...), one entry per real item.
        rows: (R,), see `real_rows`.
        item_mask: (B, K).

    Returns:
        (B, K, ...)

    >>> item_mask = torch.tensor([[True, False], [True, True]])
    >>> fill_slots(torch.tensor([1.0, 2.0, 3.0]), real_rows(item_mask), item_mask).tolist()
    [[1.0, 0.0], [2.0, 3.0]]
    """
    slots = values.new_zeros(item_mask.numel(), *values.shape[1:]).index_copy(0, rows, values)
    return slots.view(*item_mask.shape, *values.shape[1:])
