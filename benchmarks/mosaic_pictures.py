"""
Mosaics of four to nine captioned pictures: images whose items are independent, and whose every item has a known place.

A mosaic is SIDE pixels square. It has two or three rows (or columns), each with two or three tiles of its own, cut at patches
of the model where the draw says: a place says nothing about what is there. A tile shows one picture, and one caption of the
picture is an item of the mosaic. Tiles of one mosaic are of different classes, its items are different texts in random order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from itemized_clip_hf.data.studies.cache import CachedPictures
from itemized_clip_hf.data.studies.records import read_records
from itemized_clip_hf.evaluation.protocols import load_protocol
from itemized_clip_hf.evaluation.zero_shot import match_class

PATCH = 8
GRID = 9
SIDE = PATCH * GRID
"""Pixels of a mosaic: 9 x 9 patches, so that three tiles in a row have 3 patches each, and two have 4 and 5."""
CACHED_SIDE = 48
"""Pixels of the pictures that tiles are made of; the largest tile has 40."""
MOST_TILES = 9
CROP_SCALE = (0.7, 1.0)
"""Share of a picture's area that a tile of training shows, as in the recipe `remote-sensing`."""
IGNORED_CLASS = "playfields"
"""Has no prompt in the protocol; such pictures are in the mosaics of training alone, as another playground."""


@dataclass(frozen=True)
class Mosaic:
    """
    One image with items whose regions are known.

    Args:
        picture: (SIDE, SIDE, 3) 8-bit.
        items: a caption of every tile.
        boxes: (K, 4) top, left, rows and columns in pixels of the tile that each item belongs to.
        classes: of the tile of each item.
        sources: numbers of the tiles' pictures.
    """

    picture: np.ndarray
    items: list[str]
    boxes: np.ndarray
    classes: list[str]
    sources: list[int]

    def masks(self) -> list[np.ndarray]:
        """(SIDE, SIDE) of every item, True in its tile."""
        masks = []
        for top, left, rows, columns in self.boxes:
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            mask[top : top + rows, left : left + columns] = True
            masks.append(mask)
        return masks


@dataclass(frozen=True)
class TilePictures:
    """
    What tiles are made of.

    Args:
        pixels: (N, S, S, 3) 8-bit.
        captions: different texts of each picture.
        classes: of each picture.
    """

    pixels: np.ndarray
    captions: list[list[str]]
    classes: list[str]

    def __post_init__(self):
        if len(set(self.classes)) < MOST_TILES:
            raise ValueError(f"{MOST_TILES} tiles need as many classes, found {sorted(set(self.classes))}.")

    @classmethod
    def read(cls, source: str | Path, keep_ignored: bool = False) -> "TilePictures":
        """
        Pictures of a list with `label` and captions, in the protocol's names of the classes.

        Args:
            keep_ignored: keep the class that has no prompt, as playgrounds.

        Raises:
            ValueError: a picture cannot be read or has no caption or class of the protocol.
        """
        cached = CachedPictures(read_records(source), CACHED_SIDE, progress=False)
        if cached.skipped:
            raise ValueError(f"{source}: {cached.skipped[0].study} cannot be read: {cached.skipped[0].reason}")
        names = load_protocol("rsicd").classes
        pixels, captions, classes = [], [], []
        for record in cached:
            label = str(record["label"])
            if label.lower() == IGNORED_CLASS:
                if not keep_ignored:
                    continue
                label = "playground"
            name = match_class(label, names)
            if name is None or not record.get("items"):
                raise ValueError(f"{source}: {record['id']} has no caption, or {label!r} is no class of the protocol.")
            pixels.append(record["images"])
            captions.append(list(dict.fromkeys(record["items"])))
            classes.append(name)
        return cls(np.stack(pixels), captions, classes)

    def __len__(self) -> int:
        return len(self.captions)


class Mosaics(Sequence):
    """
    Mosaics by number: each is drawn from (seed, number) alone, so that a list of any length is the same at any time.

    Args:
        count: of mosaics.
        training: show a random part of each picture, turned and mirrored; else the whole picture as it is.
    """

    def __init__(self, pictures: TilePictures, count: int, seed: int, training: bool = False):
        self.pictures = pictures
        self.count = count
        self.seed = seed
        self.training = training

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict:
        """A mosaic as the collator takes it."""
        mosaic = self.mosaic(number)
        return {"id": f"mosaic-{number}", "images": mosaic.picture, "items": mosaic.items}

    def mosaic(self, number: int) -> Mosaic:
        """The mosaic of that number with its truth."""
        if not 0 <= number < self.count:
            raise IndexError(number)
        random = np.random.default_rng([self.seed, number])
        boxes = draw_layout(random)
        sources, items = self._draw_tiles(len(boxes), random)
        boxes = boxes[random.permutation(len(boxes))]
        picture = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        draws = random.random((len(boxes), 5)) if self.training else [None] * len(boxes)
        for source, (top, left, rows, columns), drawn in zip(sources, boxes.tolist(), draws):
            tile = show_tile(self.pictures.pixels[source], (rows, columns), drawn)
            picture[top : top + rows, left : left + columns] = tile
        return Mosaic(picture, items, boxes, [self.pictures.classes[source] for source in sources], sources)

    def _draw_tiles(self, count: int, random: np.random.Generator) -> tuple[list[int], list[str]]:
        """Pictures of different classes, and a caption of each that none of the others has."""
        sources: list[int] = []
        items: list[str] = []
        classes: set[str] = set()
        while len(sources) < count:
            source = int(random.integers(len(self.pictures)))
            unused = [text for text in self.pictures.captions[source] if text not in items]
            if self.pictures.classes[source] in classes or not unused:
                continue
            classes.add(self.pictures.classes[source])
            sources.append(source)
            items.append(unused[random.integers(len(unused))])
        return sources, items


def show_tile(pixels: np.ndarray, size: tuple[int, int], drawn: np.ndarray | None = None) -> np.ndarray:
    """
    A picture in the size of its tile, (rows, columns, 3).

    Args:
        pixels: (S, S, 3) 8-bit.
        drawn: five uniform numbers that choose the part, its size and shape and the turn of training; the whole if None.
    """
    if drawn is None:
        return resize(pixels, size)
    side = len(pixels)
    share, aspect, y, x, turn = drawn.tolist()
    area = side * side * (CROP_SCALE[0] + share * (CROP_SCALE[1] - CROP_SCALE[0]))
    ratio = (4 / 3) ** (2 * aspect - 1)
    rows, columns = min(round((area / ratio) ** 0.5), side), min(round((area * ratio) ** 0.5), side)
    top, left = int(y * (side - rows + 1)), int(x * (side - columns + 1))
    turns, mirror = divmod(int(turn * 8), 2)
    shown = resize(pixels[top : top + rows, left : left + columns], size[::-1] if turns % 2 else size)
    return np.rot90(shown[:, ::-1] if mirror else shown, turns)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(rows, columns, 3) by Pillow's bicubic filter."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def draw_layout(random: np.random.Generator) -> np.ndarray:
    """(K, 4) top, left, rows and columns in pixels of 4 to 9 tiles that fill a mosaic."""
    boxes = []
    top = 0
    for rows in draw_cuts(random):
        left = 0
        for columns in draw_cuts(random):
            boxes.append((top, left, rows, columns))
            left += columns
        top += rows
    layout = np.array(boxes) * PATCH
    return layout[:, [1, 0, 3, 2]] if random.integers(2) else layout


def draw_cuts(random: np.random.Generator) -> list[int]:
    """Patches of two or three parts of a side, of about the same length."""
    parts = int(random.integers(2, 4))
    lengths = np.full(parts, GRID // parts)
    lengths[random.permutation(parts)[: GRID % parts]] += 1
    return lengths.tolist()
