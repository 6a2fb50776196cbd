"""What the processes of one run exchange: the texts of all, with gradients, never the images (spec 5.10)."""

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


def gather_texts(
    item_embeds: torch.Tensor, item_mask: torch.Tensor, is_normal: torch.Tensor, negatives: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """
    Items (B, K, P), mask (B, K), normal flags (B,) and index table (B, B + K - 1) of every rank, in the order of ranks.

    Gradients of the items flow back to the rank that encoded them. All ranks need the same B and K.
    """
    if world_size() == 1:
        return [(item_embeds, item_mask, is_normal, negatives)]
    shape = torch.tensor(item_embeds.shape[:2], device=item_embeds.device)
    shapes = [torch.empty_like(shape) for _ in range(world_size())]
    dist.all_gather(shapes, shape)
    if any(not torch.equal(other, shape) for other in shapes):
        raise ValueError(
            f"ranks hold (studies, item slots) of {[tuple(s.tolist()) for s in shapes]}; the loss pairs row i of one rank "
            "with row i of the others, so all need the same: drop the last incomplete batch and pad items to one count."
        )
    items = GatherWithGradient.apply(item_embeds)

    def plain(x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return parts

    masks, normals, tables = plain(item_mask.to(torch.uint8)), plain(is_normal.to(torch.uint8)), plain(negatives)
    return [(e, m.bool(), z.bool(), n) for e, m, z, n in zip(items, masks, normals, tables)]
