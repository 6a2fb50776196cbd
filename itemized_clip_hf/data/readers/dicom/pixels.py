"""Pixels of a slice: decoded within bounds, the modality LUT applied once."""

import io
import struct
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from .files import DicomFile, UnusableFileError
from .header import TAGS, refuse_deflated
from .slices import Slice

MAX_FILE_BYTES = 1 << 30
MAX_SERIES_BYTES = 2 << 30
MAX_EXCESS = 1024
"""Bytes after the pixels of a frame that are taken for padding."""
AIR = -1024
_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_PIXEL_TAGS = (
    *_PIXEL_DATA,
    *"PixelRepresentation BitsStored HighBit PlanarConfiguration ModalityLUTSequence PixelPaddingRangeLimit".split(),
    *"ExtendedOffsetTable ExtendedOffsetTableLengths".split(),
)


def read_plane(one: Slice, modality: str, opened: dict) -> np.ndarray:
    """Pixels of one slice with the modality LUT applied once; integers where it keeps them so."""
    if id(one.file) not in opened:
        opened.clear()
        opened[id(one.file)] = _read_pixels(one.file)
    stored, dataset = opened[id(one.file)]
    plane = stored if stored.ndim == 2 else stored[one.frame]
    if plane.shape != (int(one.file.header.Rows), int(one.file.header.Columns)):
        raise UnusableFileError("its pixels do not have the size that its header gives")
    raw, plane = plane, _mask_bits(plane, dataset)
    outside = _padding(plane, dataset) if modality == "CT" else None
    if outside is not None and raw is not plane:  # padding may be written in bits beyond the stored ones
        outside |= _padding(raw, dataset)
    if dataset.get("ModalityLUTSequence"):
        values = pydicom.pixels.apply_modality_lut(plane, dataset)
    elif one.rescale is None:
        values = plane
    else:
        slope, intercept = one.rescale
        if slope == 1 and intercept == int(intercept):
            values = plane.astype(np.int64 if plane.dtype.itemsize > 2 else np.int32) + int(intercept)
        else:
            values = plane.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if outside is not None and outside.any():
        values = np.where(outside, values.dtype.type(AIR) if values.dtype.kind != "u" else 0, values)
    if values.dtype.kind in "iu" and -32768 <= values.min() and values.max() <= 32767:
        return values.astype(np.int16)
    return values.astype(np.float32)


def _padding(plane: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Which stored pixels lie outside of what was scanned."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    bits = 8 * plane.dtype.itemsize
    limits = [int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue))]
    if plane.dtype.kind == "i":  # often written as unsigned nevertheless
        limits = [limit - (1 << bits) if limit >= 1 << (bits - 1) else limit for limit in limits]
    return (plane >= min(limits)) & (plane <= max(limits))


def _read_pixels(file: DicomFile) -> tuple[np.ndarray, Any]:
    rows, columns, frames = (int(file.header.get(name) or 1) for name in ("Rows", "Columns", "NumberOfFrames"))
    # More than twice the size of the pixels is none of them, whatever a small zip inflates to.
    most = file.pixels_at + 16 * rows * columns * max(frames, 1) + (1 << 20)
    data = file.read(min(most, MAX_FILE_BYTES))
    refuse_deflated(data)
    dataset = pydicom.dcmread(io.BytesIO(data), specific_tags=[*TAGS, *_PIXEL_TAGS], force=True)
    _state_syntax(dataset)
    pixels = next((dataset[name].value for name in _PIXEL_DATA if name in dataset), None)
    if not pixels:
        raise UnusableFileError("it holds no pixels, or is cut off")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if 4 * frames * int(dataset.Rows) * int(dataset.Columns) > MAX_SERIES_BYTES:
        raise UnusableFileError(f"its {frames} frames take more than {MAX_SERIES_BYTES >> 30} GiB")
    expected = frames * int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if (syntax is None or not syntax.is_compressed) and len(pixels) > expected:  # pydicom would cut it
        if len(pixels) - expected > _most_excess(dataset):
            raise UnusableFileError(
                "it holds more pixels than its header says, or they are not in the stated transfer syntax"
            )
        file.excess = len(pixels) - expected if len(pixels) > expected + expected % 2 else 0
    compressed = syntax is not None and syntax.is_compressed
    if compressed and not _can_decode(syntax):
        raise ImportError(
            f"its pixels are compressed ({syntax.name}); reading them needs: pip install 'itemized-clip-hf[dicom-compressed]'"
        )
    try:
        if compressed and syntax != pydicom.uid.RLELossless:
            for frame in pydicom.encaps.generate_frames(pixels, number_of_frames=frames):
                if _coded_size(frame) != (int(dataset.Rows), int(dataset.Columns), 1):
                    raise UnusableFileError("its compressed pixels do not have the size that its header gives")
        words = _whole_words(dataset, pixels, expected)
        return (dataset.pixel_array if words is None else words), dataset
    except UnusableFileError:
        raise
    except Exception as error:
        raise UnusableFileError(
            f"its pixels cannot be decoded: they are cut off, damaged, or not in the stated transfer syntax "
            f"({type(error).__name__})"
        ) from None


def _whole_words(dataset: Dataset, pixels: bytes, expected: int) -> np.ndarray | None:
    """
    Uncompressed pixels of 16 bits with the bits beyond `BitsStored`, which pydicom clears and padding may be written in; None
    for others.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    words = (
        not syntax.is_compressed and int(dataset.BitsAllocated) == 16 and int(dataset.get("SamplesPerPixel", 1)) == 1
    )
    words = words and "PixelData" in dataset and 0 < int(dataset.get("BitsStored") or 0) <= 16
    if not words or not 0 < expected <= len(pixels):
        return None
    order, kind = "<" if syntax.is_little_endian else ">", "i" if dataset.get("PixelRepresentation") else "u"
    array = np.frombuffer(pixels, f"{order}{kind}2", expected // 2).astype(f"{kind}2")
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    shape = (int(dataset.Rows), int(dataset.Columns))
    return array.reshape(shape if frames == 1 else (frames, *shape))


def _state_syntax(dataset: Dataset) -> None:
    """Files without group 2 are in the encoding that they were read with."""
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        implicit, little = dataset.original_encoding
        explicit = pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian if implicit else explicit


def _most_excess(dataset: Dataset) -> int:
    """Bytes that writers leave after the pixels: less than a row or column, so that none is cut off."""
    shorter = min(int(dataset.Rows), int(dataset.Columns)) * int(dataset.BitsAllocated) // 8
    return max(min(shorter - 1, MAX_EXCESS), 1)


def _mask_bits(plane: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored pixels without the bits above `BitsStored`, where old overlays lie, with the sign of the highest stored bit."""
    stored, allocated = int(dataset.get("BitsStored") or 0), 8 * plane.dtype.itemsize
    if plane.dtype.kind not in "iu" or not 0 < stored < allocated:
        return plane
    bits = plane.astype(np.dtype(f"u{plane.dtype.itemsize}"))
    high, syntax = int(dataset.get("HighBit", stored - 1)), dataset.file_meta.TransferSyntaxUID
    if stored <= high < allocated and (not syntax.is_compressed or syntax == pydicom.uid.RLELossless):
        bits = bits >> (high + 1 - stored)
    bits = bits & ((1 << stored) - 1)
    if plane.dtype.kind == "u":
        return bits.astype(plane.dtype)
    sign = 1 << (stored - 1)
    return ((bits.astype(np.int64) ^ sign) - sign).astype(plane.dtype)


def _coded_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and colors that a JPEG or JPEG 2000 stream states: decoders take memory for them before anything else."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000: start of the stream, then its size
    if start >= 0:
        columns, rows, left, top = struct.unpack_from(">4I", frame, start + 8)
        return rows - top, columns - left, struct.unpack_from(">H", frame, start + 40)[0]
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xF7 or 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # JPEG-LS; start of a frame
            return (*struct.unpack_from(">2H", frame, at + 5), frame[at + 9])
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _can_decode(syntax: UID) -> bool:
    try:
        return pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        raise UnusableFileError("its pixels are compressed in a way that nothing here decodes, as a video is") from None
