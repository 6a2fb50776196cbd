"""
Pictures that stay where the model is, as 8-bit values: random crops, turns and normalization are done there, batch by batch.

The draws of every visit are those of the ordinary way through the processor. So are the pixels, but for steps of 1 in 255:
Pillow's whole numbers are computed as such, in float64, always across first and then down, while Pillow 13 begins with what it
finds cheaper, and rounds in between.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..processing.pictures_itemized_clip import draw_crop, draw_rot90_flip
from .collator import ItemizedCLIPCollator

AT_ONCE = 256
"""Pictures that are resampled at a time: memory, nothing else."""

SHARE_OF_FREE_MEMORY = 0.5


@dataclass
class Visit:
    """What is drawn of a picture: its number, crop (top, left, rows, columns), quarter turns, mirror image and texts."""

    number: int
    box: tuple[int, int, int, int]
    turn: tuple[int, int]
    items: list[str]
    is_normal: bool


class ResidentPictures(Dataset[Visit]):
    """
    Training pictures in memory, in place of a `SeededDataset`.

    Args:
        records: map-style; `images` are pictures of one size, (H, W, 3) 8-bit, as `CachedPictures` holds them; `items`.
        collator: of the ordinary way, whose processor and draws are used.
        device: where the pictures stay, if half of its free memory holds them; else they stay in pinned memory.

    Raises:
        ValueError: for pictures of several sizes.
    """

    def __init__(self, records: Any, collator: ItemizedCLIPCollator, device: torch.device | str = "cpu"):
        self.collator = collator
        self.items = [record["items"] for record in records]
        self.flags = [record.get("is_normal") for record in records]
        pictures = [np.asarray(record["images"]) for record in records]
        shapes = sorted({picture.shape for picture in pictures})
        if len(shapes) != 1 or len(shapes[0]) != 3 or pictures[0].dtype != np.uint8:
            raise ValueError(
                f"resident pictures have to be of one size with 8 bits a channel, found {shapes[:5]}: set cache_pictures in "
                "the recipe for square pictures, or leave resident_pictures out."
            )
        processor = collator.processor.image_processor
        self.crop_scale, self.turns = processor.train_crop_scale, processor.train_rot90_flip
        if self.crop_scale is None or not processor.do_resize:
            raise ValueError("resident pictures need train_crop_scale and do_resize in the image settings.")
        if self.turns and processor.scan_size[1] != processor.scan_size[2]:
            raise ValueError(f"train_rot90_flip needs a square scan_size, got {list(processor.scan_size)}.")
        self.size = tuple(processor.scan_size[1:])
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        self.device = torch.device(device)
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
            fits = stacked.numel() < SHARE_OF_FREE_MEMORY * free
            stacked = stacked.to(self.device) if fits else stacked.pin_memory()
        self.pictures = stacked
        rescale = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
        shape = (1, 3, 1, 1)
        self.factor = (rescale / torch.tensor(std)).view(shape).to(self.device)
        self.shift = (torch.tensor(mean) / torch.tensor(std)).view(shape).to(self.device)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Visit:
        """The draws of a visit, in the order of the ordinary way: texts, crop, turn."""
        number, seed = key
        generator = torch.Generator().manual_seed(seed)
        items = self.collator.choose_texts(self.items[number], generator)
        height, width = self.pictures.shape[2:]
        box = draw_crop(height, width, self.crop_scale, generator)
        turn = draw_rot90_flip(generator) if self.turns else (0, 0)
        return Visit(number, box, turn, items, self.collator.flag(self.items[number], self.flags[number]))

    def collate(self, visits: list[Visit]) -> dict[str, torch.Tensor]:
        """Texts of a batch, and what `pixels` makes of its pictures."""
        batch = self.collator.encode([visit.items for visit in visits])
        batch["picture"] = torch.tensor([(visit.number, *visit.box, *visit.turn) for visit in visits])
        batch["is_normal"] = torch.tensor([visit.is_normal for visit in visits])
        return batch

    @torch.no_grad()
    def pixels(self, drawn: torch.Tensor) -> torch.Tensor:
        """`pixel_values` (B, 1, 3, 1, H, W), float32, on the device, of what `collate` put under `picture` (B, 7)."""
        parts = [self._resample(part) for part in torch.split(drawn, AT_ONCE)]
        return torch.cat(parts)[:, None, :, None]

    def _resample(self, drawn: torch.Tensor) -> torch.Tensor:
        numbers = drawn[:, 0].to(self.pictures.device)
        pictures = self.pictures[numbers].to(self.device, non_blocking=True)
        drawn = drawn.to(self.device)
        _, top, left, rows, columns, turns, mirror = drawn.unbind(1)
        across = bicubic_matrix(left, columns, pictures.shape[3], self.size[1])
        down = bicubic_matrix(top, rows, pictures.shape[2], self.size[0])
        pixels = to_8_bits(pictures.double() @ across.transpose(1, 2)[:, None])
        pixels = to_8_bits(down[:, None] @ pixels).float()
        if self.turns:
            pixels = turn_batch(pixels, turns, mirror)
        return pixels * self.factor - self.shift


PRECISION = 1 << 22
"""What Pillow multiplies weights with to calculate with whole numbers."""


def to_8_bits(values: torch.Tensor) -> torch.Tensor:
    """Sums of weighted 8-bit values, in units of 1 / PRECISION, rounded."""
    return ((values + PRECISION // 2) / PRECISION).floor_().clamp_(0, 255)


def bicubic_matrix(start: torch.Tensor, length: torch.Tensor, size: int, wanted: int) -> torch.Tensor:
    """
    Weights (B, wanted, size) that resample the part of a line from `start` on, of `length` (B,) points, to `wanted` points.

    Whole numbers in float64 that add up to about `PRECISION`: Pillow's bicubic filter (a = -0.5), widened where the line
    shrinks, and cut at the ends of the part.
    """
    scale = length.double() / wanted
    wide = scale.clamp(min=1)
    center = (torch.arange(wanted, device=start.device) + 0.5) * scale[:, None]
    support = 2 * wide[:, None]
    first = (center - support + 0.5).floor().clamp(min=0)
    last = torch.minimum((center + support + 0.5).floor(), length[:, None].double())
    place = torch.arange(size, device=start.device).double() - start[:, None]
    distance = ((place[:, None] - center[..., None] + 0.5) / wide[:, None, None]).abs()
    near = ((1.5 * distance) - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    weights = weights * ((place[:, None] >= first[..., None]) & (place[:, None] < last[..., None]))
    weights = weights / weights.sum(-1, keepdim=True) * PRECISION
    return (weights.abs() + 0.5).floor() * weights.sign()


def turn_batch(pixels: torch.Tensor, turns: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    """Each picture of (B, C, S, S) in quarter turns of its own, then mirrored from left to right where `mirror` is set."""
    turned = pixels
    for count in (1, 2, 3):
        rows = turns == count
        turned = torch.where(rows[:, None, None, None], pixels.rot90(count, (2, 3)), turned)
    return torch.where(mirror.bool()[:, None, None, None], turned.flip(3), turned)
