"""The texts of all ranks side by side: what the fused formulation scores the images of this one against."""

from dataclasses import dataclass

import torch

from .blocks import Block, SeededMask


@dataclass
class Columns:
    """
    All texts that the images are scored against: those of every block, side by side. B images, T texts of an image.

    Args:
        table: (B, T) row numbers into the flattened items of all blocks.
        labels: (B, T), 1 for the items of an image's own study, else -1.
        weights: (B, T), 0 for texts that are left out.
        is_own: (B, T), True for the slots of an image's own study.
        is_real: (B, T), False for padded slots.
        keep_masks: place of each block among the columns, and its token mask.
        local: place of the texts that belong to the images, which come first; None where these are other ranks' alone.
        item_mask: (B, K) of the images' own items; None with `local`.
    """

    table: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    is_own: torch.Tensor
    is_real: torch.Tensor
    keep_masks: list[tuple[slice, torch.Tensor | SeededMask | None]]
    local: slice | None
    item_mask: torch.Tensor | None

    @classmethod
    def of(cls, blocks: list[Block], dtype: torch.dtype) -> "Columns":
        """The columns of blocks, of which the local one, if any, comes first."""
        tables, keep_masks = [], []
        first_row = first_column = 0
        for block in blocks:
            tables.append(block.table + first_row)
            first_row += block.item_mask.numel()
            keep_masks.append((slice(first_column, first_column + block.table.shape[1]), block.keep_mask))
            first_column += block.table.shape[1]
        is_own = torch.cat([block.own for block in blocks], 1)
        is_local = blocks[0].local
        return cls(
            table=torch.cat(tables, 1),
            labels=is_own.to(dtype) * 2 - 1,
            weights=torch.cat([block.counted for block in blocks], 1).to(dtype),
            is_own=is_own,
            is_real=torch.cat([block.real for block in blocks], 1),
            keep_masks=keep_masks,
            local=keep_masks[0][0] if is_local else None,
            item_mask=blocks[0].item_mask if is_local else None,
        )

    def keep_mask(
        self, images: slice, columns: slice, shape: tuple[int, ...], device: torch.device
    ) -> torch.Tensor | None:
        """(images, heads, columns, L), or None where no text of these columns is kept from a token."""
        count, heads, _, length = shape
        parts: list[tuple[torch.Tensor | None, int]] = []
        for place, mask in self.keep_masks:
            start, stop = max(place.start, columns.start), min(place.stop, columns.stop)
            if start >= stop:
                continue
            inside = slice(start - place.start, stop - place.start)
            if isinstance(mask, SeededMask):
                drawn = mask.rows(images.start, (count, heads, place.stop - place.start, length), device)
                part = None if drawn is None else drawn[:, :, inside]
            else:
                part = None if mask is None else mask[images, :, inside]
            parts.append((part, stop - start))
        if all(part is None for part, _ in parts):
            return None
        masks = [
            part if part is not None else torch.ones(1, 1, width, 1, dtype=torch.bool, device=device)
            for part, width in parts
        ]
        return torch.cat([mask.expand(count, heads, -1, length) for mask in masks], 2) if len(masks) > 1 else masks[0]

    def own_rows(self, images: slice) -> torch.Tensor:
        """(images, K), rows of the images' own items in the flattened items."""
        assert self.item_mask is not None
        slots = self.item_mask.shape[1]
        first = torch.arange(images.start, images.stop, device=self.table.device)[:, None] * slots
        return first + torch.arange(slots, device=first.device)
