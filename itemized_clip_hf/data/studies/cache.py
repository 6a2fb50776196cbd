"""Decoded pictures kept in memory at a small size, for runs that see each of them many times."""

from typing import Any

import numpy as np
from PIL import Image

from ...processing.pictures_itemized_clip import open_picture, upright
from ..study import Skipped


class CachedPictures:
    """
    Records whose pictures are decoded once and kept as 8-bit arrays.

    Args:
        records: map-style; pictures under `images`.
        shortest_side: pixels.

    Records whose picture cannot be read are left out and listed in `skipped`.
    """

    def __init__(self, records: Any, shortest_side: int, progress: bool = True):
        from tqdm.auto import tqdm

        self.records: list[dict] = []
        self.skipped: list[Skipped] = []
        self.id_column = getattr(records, "id_column", None)
        for index in tqdm(range(len(records)), desc="decoding", unit="picture", disable=not progress):
            try:
                record = records[index]
                record["images"] = shrink(record["images"], shortest_side)
            except Exception as error:
                self.skipped.append(Skipped(records.id_of(index), None, "read", str(error)))
                continue
            self.records.append(record)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        return dict(self.records[index])

    def id_of(self, index: int) -> str:
        """Id of a record."""
        return self.records[index]["id"]


def shrink(picture: Any, shortest_side: int) -> np.ndarray:
    """(H, W, 3) 8-bit RGB of a PIL image or a path, its shortest side at most `shortest_side` pixels."""
    if isinstance(picture, str):
        picture = open_picture(picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"expected a picture, found {type(picture).__name__}.")
    picture = upright(picture).convert("RGB")
    factor = shortest_side / min(picture.size)
    if factor < 1:
        picture = picture.resize(
            [max(round(side * factor), shortest_side) for side in picture.size], Image.Resampling.BICUBIC
        )
    return np.asarray(picture)
