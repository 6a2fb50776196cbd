"""What the pooled terms are summed over: the texts of one rank against the own images."""

from dataclasses import dataclass

import torch

from .functional import draw_keep_mask


@dataclass
class SeededMask:
    """
    A random token mask that is drawn where it is used, image by image, so that all of it never exists at once.

    Args:
        seed: of the whole mask; every image has a stream of its own.
        keep_rate: probability of True.
    """

    seed: int
    keep_rate: float

    def rows(self, first: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor | None:
        """The mask (images, heads, T, L) of some images from number `first` on; None where nothing is hidden."""
        if self.keep_rate >= 1:
            return None
        drawn = []
        for image in range(first, first + shape[0]):
            generator = torch.Generator(device).manual_seed((self.seed * 1_000_003 + image) % (1 << 63))
            drawn.append(draw_keep_mask(shape[1:], self.keep_rate, generator, device))
        return torch.stack(drawn)  # type: ignore[arg-type]  # none is None: keep_rate is below 1


@dataclass
class Block:
    """
    The texts of one rank and how the images of this one see them.

    B own images, B' studies of that rank, T texts of an image.

    Args:
        items: (B', K, P).
        item_mask: (B', K), True for real items.
        table: (B, T) row numbers into the flattened items.
        dropped: (B, B') pairs of studies left out.
        local: whether the texts belong to the images: row i of the table then has the items of study i.
        keep_mask: (B, heads, T, L), True where a text may attend to a token; None: everywhere.
    """

    items: torch.Tensor
    item_mask: torch.Tensor
    table: torch.Tensor
    dropped: torch.Tensor
    local: bool
    keep_mask: torch.Tensor | SeededMask | None = None

    @property
    def study(self) -> torch.Tensor:
        """(B, T), study of every text of the table."""
        return self.table // self.item_mask.shape[1]

    @property
    def own(self) -> torch.Tensor:
        """(B, T), True for the slots of an image's own study."""
        rows = torch.arange(len(self.table), device=self.table.device)[:, None]
        return (self.study == rows) & self.local

    @property
    def real(self) -> torch.Tensor:
        """(B, T), False for padded slots."""
        return self.item_mask.flatten()[self.table]

    @property
    def counted(self) -> torch.Tensor:
        """(B, T), texts that enter the loss: real, of a pair that is not left out."""
        return self.real & ~self.dropped.gather(1, self.study)
