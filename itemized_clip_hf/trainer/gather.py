"""What the processes of one run exchange: texts, and the global features of images where an objective needs them."""

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class GatherWithGradient(torch.autograd.Function):
    """All ranks' tensors of one shape, stacked; the gradient of a rank's own tensor is the sum of what all ranks return."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        if dist.get_backend() in ("nccl", "xccl"):
            own = torch.empty_like(gradient[0])
            dist.reduce_scatter_tensor(own, gradient)
            return own
        dist.all_reduce(gradient)
        return gradient[rank()]


def require_equal(shape: torch.Size, device: torch.device) -> None:
    """Raises where the ranks' first dimensions (studies, or studies and item slots) differ."""
    own = torch.tensor(shape, device=device)
    shapes = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(shapes, own)
    if any(not torch.equal(other, own) for other in shapes):
        raise ValueError(
            f"ranks hold (studies, item slots) of {[tuple(s.tolist()) for s in shapes]}; the loss pairs row i of one rank "
            "with row i of the others, so all need the same: drop the last incomplete batch and pad items to one count."
        )


def gather_rows(*tensors: torch.Tensor, with_gradient: bool = True) -> list[torch.Tensor]:
    """
    Each tensor (B, ...) as (W * B, ...), the rows of all ranks in their order. All ranks need the same shapes.

    Args:
        tensors: of the same studies.
        with_gradient: gradients flow back to the rank of a row; False: to the own rows only.
    """
    if world_size() == 1:
        return list(tensors)
    require_equal(tensors[0].shape[:2], tensors[0].device)
    gathered = []
    for x in tensors:
        sent = x.to(torch.uint8) if x.dtype == torch.bool else x if with_gradient else x.detach()
        rows = GatherWithGradient.apply(sent).flatten(0, 1).to(x.dtype)
        if not with_gradient:
            rows = rows.index_copy(0, own_rows(torch.arange(len(rows), device=x.device)), x)
        gathered.append(rows)
    return gathered


def own_rows(gathered: torch.Tensor) -> torch.Tensor:
    """The rows of this rank among those of all."""
    return gathered.chunk(world_size())[rank()]


def own_identity(count: int, device: torch.device) -> torch.Tensor:
    """The rows of this rank, (count / W, count), of a boolean identity matrix."""
    rows = torch.arange(count, device=device)
    return own_rows(rows)[:, None] == rows


def gather_texts(
    item_embeds: torch.Tensor, item_mask: torch.Tensor, is_normal: torch.Tensor, negatives: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """
    Items (B, K, P), mask (B, K), normal flags (B,) and index table (B, B + K - 1) of every rank, in the order of ranks.

    Gradients of the items flow back to the rank that encoded them. All ranks need the same B and K.
    """
    if world_size() == 1:
        return [(item_embeds, item_mask, is_normal, negatives)]
    require_equal(item_embeds.shape[:2], item_embeds.device)
    items = GatherWithGradient.apply(item_embeds)

    def plain(x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return parts

    masks, normals, tables = plain(item_mask.to(torch.uint8)), plain(is_normal.to(torch.uint8)), plain(negatives)
    return [(e, m.bool(), z.bool(), n) for e, m, z, n in zip(items, masks, normals, tables)]
