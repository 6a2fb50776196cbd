"""NIfTI files: one checked volume each, and maps written back beside them."""

import io
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...processing.geometry_itemized_clip import axis_codes, axis_spacing, permutation
from ..study import Scan

SUFFIXES = (".nii", ".nii.gz")
MAX_BYTES = 2 << 30
"""Bytes that one volume may take at most as stored; a chest CT of 1,000 slices takes half a gigabyte."""

_MAX_INFLATION = 1032  # of deflate
_SPACING_LIMITS = (1e-3, 1e3)
_UNITS_TO_MM = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
DEPTH_FIRST = permutation((2, 1, 0))


def _require_nibabel():
    """Imported where it is used: what only lists studies starts without it."""
    try:
        import nibabel
    except ImportError:
        raise ImportError("NIfTI files need nibabel: pip install 'itemized-clip-hf[volumes]'.") from None
    return nibabel


def read(path: str | os.PathLike[str], volume_index: int | None = None) -> Scan:
    """A file of one volume, or one of its volumes: see `read_nifti`."""
    return read_nifti(path, volume_index)


def read_nifti(
    path: str | os.PathLike, volume_index: int | None = None, max_bytes: int = MAX_BYTES, data: bytes | None = None
) -> Scan:
    """
    One volume with its affine (scl_slope and scl_inter applied once), integers kept where nothing scales them.

    Args:
        path: `.nii` or `.nii.gz`. Compressed files are read once, to the end, so that their checksum is verified.
        volume_index: which volume of a file with a fourth axis; such a file is refused without it.
        max_bytes: limit of the bytes that the file's data may take.
        data: content of the file, where it is at hand already.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or broken, not a volume, several volumes, impossible size or geometry.
    """
    _require_nibabel()
    path = Path(path)
    if data is None and not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name}.")
    name = path.name
    with path.open("rb") if data is None else io.BytesIO(data) as file:
        stream = Inflate(file) if file.read(2) == b"\x1f\x8b" else file
        stored = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            header = _read_header(stream, name)
            offset, dtype, shape = _layout(header, name, max_bytes)
            stream.read(offset - header.sizeof_hdr)
            size = dtype.itemsize * int(np.prod(shape))
            max_size = stored - offset if stream is file else stored * _MAX_INFLATION
            if max_size < size:  # before memory is taken for them
                raise ValueError(
                    f"{name} cannot be read: it is truncated, {stored} bytes cannot hold the {size} of its voxels."
                )
            voxels = stream.read(size)
            if len(voxels) < size:
                raise ValueError(
                    f"{name} cannot be read: it is truncated, {size - len(voxels)} of {size} bytes of its voxels are missing."
                )
            if stream.read(1):
                raise ValueError(
                    f"{name} cannot be read: it goes on after the {shape} voxels of its header, which is damaged or wrong."
                )
        except (zlib.error, EOFError) as error:
            raise ValueError(f"{name} cannot be read: it is truncated or damaged ({error}).") from None
    array = np.frombuffer(voxels, dtype).reshape(shape, order="F")
    array = _choose_volume(array, volume_index, name)
    with np.errstate(all="ignore"):  # what overflows or is not finite is refused or reported in words
        array = _scale(array, header, name)
        affine, history, notes = _geometry(header, name)
    history.insert(0, f"NIfTI of {' x '.join(map(str, shape))} voxels")
    if len(shape) > 3 and max(shape[3:]) > 1:
        history.append(f"volume {volume_index} of {shape[3]} taken")
    private = tuple(key for key in ("descrip", "aux_file", "intent_name", "db_name") if _text(header, key))
    return Scan(array.transpose(2, 1, 0), affine @ DEPTH_FIRST, _stem(path), str(path), None, history, notes, private)


def scan_of_image(image: Any, name: str | None = None) -> Scan:
    """A nibabel image of one volume as a scan."""
    array = np.asanyarray(image.dataobj)
    if array.ndim != 3:
        raise ValueError(f"the image has shape {array.shape}; expected a volume with three axes.")
    return Scan(
        array.transpose(2, 1, 0), np.asarray(image.affine, float) @ DEPTH_FIRST, name, history=["nibabel image"]
    )


class Inflate:
    """Reads gzip (or zlib) data in pieces, never more than asked for, checksums verified."""

    def __init__(self, file: IO[bytes], window_bits: int = 31):
        self.file = file
        self.decoder = zlib.decompressobj(window_bits)
        self.pending = b""
        self.chunk = 1 << 16  # what a header needs; what follows comes in large pieces

    def read(self, size: int) -> bytearray:
        """The next bytes, inflated; fewer at the end of the file."""
        inflated = bytearray()
        while (wanted := size - len(inflated)) > 0:
            if self.decoder.eof:
                rest = (self.decoder.unused_data + self.pending).lstrip(b"\0") or self.file.read(1 << 16).lstrip(b"\0")
                if not rest:
                    break
                self.decoder, self.pending = zlib.decompressobj(31), rest
            chunk = self.pending
            if not chunk:
                chunk, self.chunk = self.file.read(self.chunk), 1 << 24
            if not chunk:
                raise EOFError("the compressed data ends early")
            inflated += self.decoder.decompress(chunk, min(wanted, 1 << 24))
            self.pending = self.decoder.unconsumed_tail
        return inflated


def _read_header(stream: IO[bytes] | Inflate, name: str):
    nibabel = _require_nibabel()
    start = stream.read(348)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        size = kind.sizeof_hdr
        for endianness in "<>":
            if start[:4] == np.array(size, f"{endianness}i4").tobytes():
                binary = bytes(start + stream.read(size - len(start)))
                if len(binary) == size:  # nibabel would guess the byte order by another field
                    return kind(binary, endianness=endianness, check=False)
    raise ValueError(f"{name} cannot be read: it is truncated, damaged or not a NIfTI file (no header of that format).")


def _layout(header: Any, name: str, max_bytes: int) -> tuple[int, np.dtype, tuple[int, ...]]:
    """Where the voxels start, their type and the shape (3 to 5 axes), all of it possible."""
    magic = bytes(header["magic"].tobytes()).rstrip(b"\0\r\n\x1a")
    if magic not in (b"n+1", b"n+2"):
        raise ValueError(f"{name} cannot be read: it is damaged, or the header of a pair of files (magic {magic!r}).")
    dims = [int(count) for count in header["dim"]]
    if not 1 <= dims[0] <= 7 or min(dims[1 : dims[0] + 1]) < 1:
        raise ValueError(
            f"{name} cannot be read: its header gives the size {dims[1 : max(dims[0], 0) + 1]} ({dims[0]} axes)."
        )
    shape = tuple(dims[1 : dims[0] + 1])
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise ValueError(f"{name} has shape {shape}: that is a picture, expected a volume with three axes.")
    try:
        dtype = header.get_data_dtype()
    except Exception:  # nibabel raises what its tables raise
        raise ValueError(f"{name} cannot be read: unknown type of voxels (code {int(header['datatype'])}).") from None
    if dtype.fields is not None:
        raise ValueError(f"{name} holds colors or records ({dtype}); expected one number per voxel.")
    if dtype.kind == "c":
        raise ValueError(f"{name} holds complex numbers; export the magnitude.")
    if dtype.kind not in "iuf" or dtype.itemsize * 8 != int(header["bitpix"]):
        raise ValueError(f"{name} cannot be read: {int(header['bitpix'])} bits a voxel do not fit its type {dtype}.")
    size = dtype.itemsize * int(np.prod([float(count) for count in shape]))
    if size > max_bytes:
        raise ValueError(
            f"{name} says that its voxels ({' x '.join(map(str, shape))}) take {size / 2**30:,.1f} GiB, more than the limit of "
            f"{max_bytes / 2**30:.1f} GiB: its header is damaged, or it has to be cut into smaller files."
        )
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or not header.sizeof_hdr <= offset <= (1 << 26):
        raise ValueError(f"{name} cannot be read: its voxels would start at byte {offset}.")
    return int(offset), dtype, shape


def _choose_volume(array: np.ndarray, volume_index: int | None, name: str) -> np.ndarray:
    if array.ndim == 3:
        return array
    if array.ndim > 4:
        raise ValueError(f"{name} has shape {array.shape}; expected three axes, or four for several volumes.")
    if volume_index is None:
        raise ValueError(
            f"{name} holds {array.shape[3]} volumes (shape {array.shape}): choose one with volume_index "
            "(--volume-index on the command line; 0 is the first), or split the file into one per volume."
        )
    if not 0 <= volume_index < array.shape[3]:
        raise ValueError(f"{name} holds {array.shape[3]} volumes, there is no volume {volume_index}.")
    return array[..., volume_index]


def _scale(array: np.ndarray, header: Any, name: str) -> np.ndarray:
    """scl_slope and scl_inter, applied once, in float32; a slope of 0 or NaN means none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        slope, intercept = 1.0, 0.0
    if not np.isfinite(slope) or not np.isfinite(intercept):
        raise ValueError(f"{name} cannot be read: its voxels are scaled by {slope} and {intercept}.")
    if (slope, intercept) != (1.0, 0.0):
        scaled = np.multiply(array, np.float32(slope), dtype=np.float32)
        scaled += np.float32(intercept)
        return scaled
    return array if array.dtype.isnative and array.dtype.itemsize < 8 else array.astype(_native(array.dtype))


def _native(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize > 4 else dtype.newbyteorder("=")


def _geometry(header: Any, name: str) -> tuple[np.ndarray, list[str], dict[str, str]]:
    """Affine (voxel indices in the file's order -> mm), what was done, and what is doubtful."""
    history: list[str] = []
    notes: dict[str, str] = {}
    try:
        units = header.get_xyzt_units()[0]
    except Exception:  # nibabel raises what its tables raise over a code that is none of theirs
        units = "unknown"
    to_mm = np.diag([_UNITS_TO_MM.get(units, 1.0)] * 3 + [1.0])
    if to_mm[0, 0] != 1:
        history.append(f"geometry converted from {units} to mm")
    zooms = np.asarray(header["pixdim"][1:4], float) * to_mm[0, 0]
    if not (np.isfinite(zooms).all() and (zooms > 0).all()):
        raise ValueError(
            f"{name} has no usable geometry: its voxel spacing is {_numbers(zooms)} (pixdim); expected three positive numbers. "
            "Convert the original series again."
        )
    affines = _stated_affines(header, to_mm, name, notes)
    if affines:
        affine = affines["sform"] if "sform" in affines else affines["qform"]
    else:
        notes["orientation-unknown"] = "its header gives no orientation (sform and qform codes are 0)"
        affine = to_mm @ np.asarray(header.get_base_affine(), float)
        if not is_usable_affine(affine):
            raise ValueError(f"{name} has no usable geometry: its voxel spacing is {_numbers(zooms)} mm (pixdim).")
    if len(affines) == 2:
        codes = {kind: axis_codes(stated) for kind, stated in affines.items()}
        if codes["sform"] != codes["qform"]:
            notes["two-orientations"] = (
                f"its sform says {codes['sform']}, its qform {codes['qform']}; the sform was taken"
            )
    if not np.allclose(axis_spacing(affine), zooms, rtol=0.02):
        notes["two-spacings"] = (
            f"its affine says {_numbers(axis_spacing(affine))} mm, its pixdim {_numbers(zooms)}; the former was taken"
        )
    return affine, history, notes


def _stated_affines(header: Any, to_mm: np.ndarray, name: str, notes: dict[str, str]) -> dict[str, np.ndarray]:
    """Usable affines (mm) of the header, the sform before the qform; a damaged qform beside a good sform is noted."""
    affines = {}
    if int(header["sform_code"]) > 0:
        affines["sform"] = to_mm @ np.asarray(header.get_sform(), float)
    if int(header["qform_code"]) > 0:
        try:
            affines["qform"] = to_mm @ np.asarray(header.get_qform(), float)
        except Exception:  # numbers that are no rotation surface in several ways
            notes["qform"] = "its qform is damaged"
    for kind, affine in list(affines.items()):
        if is_usable_affine(affine):
            continue
        if kind == "sform" or "sform" not in affines:
            raise ValueError(
                f"{name} has no usable geometry: its {kind} is singular, not finite, or far from millimetres, so that "
                "where its voxels lie is unknown. Convert the original series again."
            )
        notes["qform"] = "its qform is damaged"
        del affines[kind]
    return affines


def is_usable_affine(affine: np.ndarray) -> bool:
    """Whether voxels of a possible size in mm lie in space, none of the axes in the plane of the others."""
    if not np.isfinite(affine).all() or np.abs(affine).max() > 1e5:
        return False
    spacing = axis_spacing(affine)
    if spacing.min() < _SPACING_LIMITS[0] or spacing.max() > _SPACING_LIMITS[1]:
        return False
    return abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-3


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _text(header: Any, key: str) -> bool:
    return key in header and bool(bytes(header[key].tobytes()).strip(b"\0 "))


def _stem(path: Path) -> str:
    name = path.name
    return name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else path.stem


def write_nifti(
    path: str | os.PathLike,
    array: np.ndarray,
    affine: np.ndarray | None,
    description: str = "",
    display: tuple[float, float] | None = None,
) -> None:
    """
    A volume in the order of axes that viewers expect, of 8 or 16 bits where it has no more, else as float32.

    Args:
        array: (D, H, W).
        affine: (4, 4), its indices -> mm; voxels of 1 mm in an unknown place if None.
        description: for the header, 79 characters at most.
        display: lowest and highest value that viewers show (cal_min, cal_max).
    """
    nibabel = _require_nibabel()
    dtype = array.dtype if array.dtype in (np.uint8, np.int8, np.int16, np.uint16) else np.float32
    stored: Any = np.asarray(array, dtype=dtype).transpose(2, 1, 0)
    stored_affine = None if affine is None else np.asarray(affine) @ DEPTH_FIRST
    image = nibabel.Nifti1Image(stored, stored_affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description[:79]
    if display is not None:
        image.header["cal_min"], image.header["cal_max"] = display
    nibabel.save(image, path)
