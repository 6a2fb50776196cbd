"""Pictures: opening, channels, resizing as in common pipelines, and what training draws."""

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils import logging

from .geometry_itemized_clip import scaling, shift
from .intensities_itemized_clip import warn_of_unit_interval
from .scans_itemized_clip import as_array, is_path, is_scan

try:
    from PIL import Image, ImageOps
except ImportError:
    Image = ImageOps = None  # type: ignore[assignment]  # arrays need no Pillow

logger = logging.get_logger(__name__)

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
EXIF_ORIENTATION = 0x0112


def is_picture(source: object) -> bool:
    """Whether it is a picture of Pillow's."""
    return Image is not None and isinstance(source, Image.Image)


def is_picture_file(source: object) -> bool:
    """Whether it is the path of a picture that can be opened."""
    return Image is not None and is_path(source) and os.fspath(source).lower().endswith(PICTURE_SUFFIXES)


def open_picture(source: Any) -> "Image.Image":
    """
    The picture of a file or a binary stream, upright.

    Raises:
        ValueError: it is truncated, damaged, of another kind, too large, or holds several pages.
    """
    name = os.path.basename(os.fspath(source)) if is_path(source) else "a picture"
    try:
        with Image.open(source) as picture:
            pages, kind = getattr(picture, "n_frames", 1), picture.format
            picture.load()
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(f"{name} claims more pixels than Pillow opens (`PIL.Image.MAX_IMAGE_PIXELS`).") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"{name} cannot be read as a picture: {type(error).__name__}.") from None
    if pages > 1 and kind in ("GIF", "PNG", "TIFF", "WEBP"):
        logger.warning(f"{name} holds {pages} pages or frames; the first is used.")
    return upright(picture)


def upright(picture: "Image.Image") -> "Image.Image":
    """A picture as its EXIF orientation shows it."""
    if picture.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def process_picture(
    source: Any, settings: Mapping[str, Any], generator: torch.Generator | None
) -> tuple[torch.Tensor, np.ndarray]:
    """
    A picture as the model takes it, before the normalization.

    Args:
        source: a picture of Pillow's, or an array or tensor (H, W), (H, W, C) or (C, H, W).
        settings: of the image processor.
        generator: draws the crop, the quarter turns and the flip of training; nothing is drawn without it.

    Returns:
        (C, 1, H, W) float32, and the index transform, with the picture as a (1, H, W) volume.
    """
    picture = channels_first(source, settings["num_channels"], settings["do_convert_rgb"])
    if settings["do_rescale"] and picture.is_floating_point():
        warn_of_unit_interval(picture, "the picture", "multiplied by rescale_factor as if they were 0 to 255")
    height, width = settings["scan_size"][1:]
    to_source = np.eye(4)
    if settings["do_resize"] and generator is not None and settings["train_crop_scale"] is not None:
        picture, to_source = crop_at_random(picture, (height, width), settings["train_crop_scale"], generator)
    elif settings["do_resize"]:
        picture, to_source = resize_and_crop(picture, (height, width))
    if generator is not None and settings["train_rot90_flip"]:
        picture, step = rot90_flip(picture, generator)
        to_source = to_source @ step
    pixel_values = picture.float()
    if settings["do_rescale"]:
        pixel_values = pixel_values * settings["rescale_factor"]
    return pixel_values[:, None], to_source


def channels_first(source: Any, num_channels: int, convert_rgb: bool) -> torch.Tensor:
    """
    The numbers of a picture, (C, H, W).

    Args:
        source: a picture of Pillow's, or an array or tensor (H, W), (H, W, C) or (C, H, W).
        num_channels: what the model takes.
        convert_rgb: bring the picture to that number: drop transparency, repeat gray.

    Raises:
        ValueError: it is a volume, has more than 8 bits a channel, or another number of channels.
    """
    if is_picture(source):
        if source.mode.startswith(("I", "F")):
            raise ValueError(
                f"a picture holds more than 8 bits a channel (mode {source.mode}): scale it to 0..255 first, with limits that "
                "suit its sensor."
            )
        if convert_rgb:
            source = source.convert("RGB" if num_channels == 3 else "L")
        source = np.array(source)
    if is_scan(source):
        raise ValueError(f"a volume of {np.shape(source.array)} voxels was given for a picture.")
    array = _move_channels(as_array(source))
    if convert_rgb and array.shape[0] == 4:
        array = array[:3]
    if convert_rgb and array.shape[0] == 1 and num_channels == 3:
        array = array.repeat(3, axis=0)
    if convert_rgb and array.shape[0] != num_channels:
        raise ValueError(f"a picture has {array.shape[0]} channels, the model takes {num_channels}.")
    return torch.from_numpy(np.ascontiguousarray(array))


def _move_channels(array: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) of 8-bit or floating values -> (C, H, W)."""
    if array.dtype.kind in "ui" and array.dtype.itemsize > 1 and (array.min() < 0 or array.max() > 255):
        raise ValueError(
            f"a picture holds values from {array.min()} to {array.max()} ({array.dtype}): scale it to 0..255 first, with "
            "limits that suit its sensor."
        )
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return array
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        return array.transpose(2, 0, 1)
    raise ValueError(
        f"a picture has shape {array.shape}; expected (height, width), (height, width, channels) or channels first."
    )


def resize_picture(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with antialiasing; 8-bit pictures through Pillow, so that files give the same pixels as in common pipelines."""
    if tuple(picture.shape[1:]) == tuple(size):
        return picture
    if picture.dtype == torch.uint8 and picture.shape[0] in (1, 3) and Image is not None:
        array = picture.permute(1, 2, 0).contiguous().numpy()
        image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        pixels = np.array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        return torch.from_numpy(pixels).view(*size, -1).permute(2, 0, 1)
    resized = F.interpolate(picture[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8) if picture.dtype == torch.uint8 else resized


def resize_and_crop(picture: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, np.ndarray]:
    """The picture (C, H, W) with its shorter side at `size`, its center cut out, and its index transform."""
    _, old_height, old_width = picture.shape
    height, width = size
    factor = max(height / old_height, width / old_width)
    resized = (max(round(old_height * factor), height), max(round(old_width * factor), width))
    picture = resize_picture(picture, resized)
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    picture = picture[:, top : top + height, left : left + width]
    return picture, scaling((1, old_height, old_width), (1, *resized)) @ shift((0, top, left))


def crop_at_random(
    picture: torch.Tensor, size: tuple[int, int], scale: Sequence[float], generator: torch.Generator
) -> tuple[torch.Tensor, np.ndarray]:
    """A drawn part of the picture (C, H, W), see `draw_crop`, at `size`, and its index transform."""
    _, old_height, old_width = picture.shape
    top, left, rows, columns = draw_crop(old_height, old_width, scale, generator)
    picture = resize_picture(picture[:, top : top + rows, left : left + columns], size)
    return picture, shift((0, top, left)) @ scaling((1, rows, columns), (1, *size))


def draw_crop(height: int, width: int, scale: Sequence[float], generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of a random crop: area share uniform in `scale`, aspect ratio in 3/4 .. 4/3."""
    for _ in range(10):
        share, aspect, y, x = torch.rand(4, generator=generator).tolist()
        area = height * width * (scale[0] + share * (scale[1] - scale[0]))
        ratio = np.exp(np.log(3 / 4) + aspect * (np.log(4 / 3) - np.log(3 / 4)))
        rows, columns = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            return int(y * (height - rows + 1)), int(x * (width - columns + 1)), rows, columns
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def draw_rot90_flip(generator: torch.Generator) -> tuple[int, int]:
    """Quarter turns, 0 to 3, and whether to mirror, 0 or 1."""
    turns, mirror = (torch.randint(high, (1,), generator=generator) for high in (4, 2))
    return int(turns), int(mirror)


def rot90_flip(picture: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """One of the eight quarter turns and mirror images of a square picture (C, S, S), and its index transform."""
    side = picture.shape[1]
    if picture.shape[2] != side:
        raise ValueError(f"train_rot90_flip needs square pictures, got {side} x {picture.shape[2]}.")
    turns, mirror = draw_rot90_flip(generator)
    quarter = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, side - 1], [0, 0, 0, 1]])
    transform = np.linalg.matrix_power(quarter, turns)
    picture = picture.rot90(turns, (1, 2))
    if mirror:
        picture = picture.flip(2)
        transform = transform @ np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, side - 1], [0, 0, 0, 1]])
    return picture, transform
