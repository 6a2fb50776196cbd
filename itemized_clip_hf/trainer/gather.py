"""What the processes of one run exchange: texts, and the global features of images where an objective needs them."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F


def world_size() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class GatherWithGradient(torch.autograd.Function):
    """All ranks' tensors of one shape, stacked; the gradient of a rank's own tensor is the sum of what all ranks return."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """(ranks, ...) of x (...)."""
        return torch.stack(gather(x))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """(...) of the gradients (ranks, ...) that every rank has."""
        gradient = gradient.contiguous()
        if dist.get_backend() in ("nccl", "xccl"):
            own = torch.empty_like(gradient[0])
            dist.reduce_scatter_tensor(own, gradient)
            return own
        dist.all_reduce(gradient)
        return gradient[rank()]


def gather_with_gradient(x: torch.Tensor) -> torch.Tensor:
    """(ranks, ...) of x (...), see `GatherWithGradient`."""
    stacked: torch.Tensor = GatherWithGradient.apply(x)  # type: ignore[no-untyped-call]  # torch's
    return stacked


def gather(x: torch.Tensor) -> list[torch.Tensor]:
    """Tensors of one shape, of all ranks, without gradients."""
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return parts


def gather_sizes(sizes: Sequence[int], device: torch.device) -> list[list[int]]:
    """These sizes, the number of studies first, of every rank; raises on all ranks where one has no study."""
    every = torch.stack(gather(torch.tensor(sizes, device=device))).tolist()
    empty = [source for source, (studies, *_) in enumerate(every) if studies == 0]
    if empty:
        raise ValueError(
            f"the processes of ranks {empty} have no study in this step, {world_size()} processes need one each: leave "
            "accelerator_config's even_batches on, or drop the last incomplete batch."
        )
    return every


def padded(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Zeros behind the end of every dimension that is shorter than in `shape`."""
    if x.shape == torch.Size(shape):
        return x
    return F.pad(x, [width for have, want in zip(x.shape[::-1], shape[::-1]) for width in (0, want - have)])


def gather_rows(*tensors: torch.Tensor, with_gradient: bool = True) -> tuple[list[torch.Tensor], slice]:
    """
    Each tensor (B, ...) as (sum of all B, ...), the rows of all ranks in their order, and the place of this rank's rows there.

    Ranks may differ in B; of other dimensions all take the largest size of any rank, filled with zeros.

    Args:
        tensors: of the same studies.
        with_gradient: gradients flow back to the rank of a row; False: to the own rows only.
    """
    if world_size() == 1:
        return list(tensors), slice(0, len(tensors[0]))
    device = tensors[0].device
    sizes = gather_sizes([len(tensors[0]), *(size for x in tensors for size in x.shape[1:])], device)
    counts, largest = [studies for studies, *_ in sizes], [max(column) for column in zip(*sizes)]
    first = sum(counts[: rank()])
    own = slice(first, first + counts[rank()])
    inner = iter(largest[1:])
    gathered = []
    for x in tensors:
        shape = [largest[0], *(next(inner) for _ in x.shape[1:])]
        sent = padded(x.to(torch.uint8) if x.dtype == torch.bool else x if with_gradient else x.detach(), shape)
        every = gather_with_gradient(sent)
        equal = min(counts) == largest[0]
        rows = every.flatten(0, 1) if equal else torch.cat([part[:n] for part, n in zip(every.unbind(), counts)])
        rows = rows.to(x.dtype)
        if not with_gradient:
            place = torch.arange(own.start, own.stop, device=device)
            rows = rows.index_copy(0, place, padded(x, [len(x), *shape[1:]]))
        gathered.append(rows)
    return gathered, own


def identity_rows(own: slice, count: int, device: torch.device) -> torch.Tensor:
    """These rows of a boolean identity matrix (count, count)."""
    rows = torch.arange(count, device=device)
    return rows[own, None] == rows


def gather_texts(
    item_embeds: torch.Tensor, item_mask: torch.Tensor, is_normal: torch.Tensor, negatives: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """
    Items (B', K', P), mask (B', K'), normal flags (B',) and index table (B, B' + K' - 1) of every rank, in the order of ranks.

    Ranks may differ in studies B and slots K, and B', K' are theirs. A table of theirs has their B' rows; what comes back has
    a row for each of the B own images: row i is row i mod B' of theirs [inferred; equal batches pair row i with row i, as the
    reference does].

    Gradients of the items flow back to the rank that encoded them.
    """
    if world_size() == 1:
        return [(item_embeds, item_mask, is_normal, negatives)]
    device, (batch, own_slots) = item_embeds.device, item_mask.shape
    sizes = gather_sizes([batch, own_slots, negatives.shape[1]], device)
    studies, slots, columns = (max(column) for column in zip(*sizes))
    items = gather_with_gradient(padded(item_embeds, (studies, slots, item_embeds.shape[-1])))
    parts = [
        padded(item_mask.long(), (studies, slots)),
        padded(is_normal.long()[:, None], (studies, 1)),
        padded(negatives, (studies, columns)),
    ]
    blocks = []
    for source, every in enumerate(gather(torch.cat(parts, 1))):
        b, k, t = sizes[source]
        mask, normal, table = torch.split(every[:b], [slots, 1, columns], dim=1)
        table = table[:, :t]
        if b != batch:
            table = table[torch.arange(batch, device=device) % b]
        blocks.append((items[source][:b, :k], mask[:, :k].bool(), normal[:, 0].bool(), table))
    return blocks


def table_widths(item_mask: torch.Tensor) -> list[int]:
    """Texts B' + K' - 1 that every rank's index table has for an image. All ranks have to ask."""
    if world_size() == 1:
        return [sum(item_mask.shape) - 1]
    return [studies + slots - 1 for studies, slots in gather_sizes(list(item_mask.shape), item_mask.device)]
