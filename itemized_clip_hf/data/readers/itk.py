"""NRRD and MetaImage files: the header is read in bounded Python first, as SimpleITK ends the process over some."""

import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..study import Scan
from . import nifti

SUFFIXES = (".nrrd", ".mha", ".mhd")
MAX_HEADER = 1 << 16
MAX_LINE = 4096
MAX_FIELD = 500
"""Bytes of a line that SimpleITK may quote in a message, for which it keeps about 1,000."""

_NRRD_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "ulonglong", "unsigned long long", "unsigned long long int", "uint64"), 8),
    **dict.fromkeys(("uint64_t", "double"), 8),
}
_MET_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG", "MET_ULONG", "MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
_ENCODINGS = ("raw", "gzip", "gz", "ascii", "text", "txt", "bzip2", "bz2", "hex")


class _Header:
    """Lines of a header by their names, spaces and case aside, and where the voxels begin."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        self.nrrd = path.suffix.lower() == ".nrrd"
        with path.open("rb") as file:
            start = file.read(MAX_HEADER)
        end = re.search(rb"\r?\n\r?\n" if self.nrrd else rb"(?m)^[ \t]*ElementDataFile[ \t]*=[^\n]*(\n|\Z)", start)
        whole = start if len(start) < MAX_HEADER else None
        if end is None and (whole is None or not self.nrrd):
            raise ValueError(
                f"{self.name} cannot be read: its header does not end within {MAX_HEADER} bytes; it is truncated, damaged or "
                "of another kind."
            )
        self.text = start[: end.end()] if end else start
        if b"\0" in self.text:
            raise ValueError(f"{self.name} cannot be read: its header holds NUL bytes, it is damaged.")
        lines = self.text.splitlines()
        longest = max(map(len, lines), default=0)
        if longest > MAX_LINE:
            raise ValueError(
                f"{self.name} cannot be read: a line of its header has {longest:,} bytes, more than the limit of {MAX_LINE:,}."
            )
        quoted = [line for line in lines if not re.match(rb"content:|[^:]*:=|#", line)]
        if len(max(quoted, key=len, default=b"")) > MAX_FIELD:
            raise ValueError(
                f"{self.name} cannot be read: a field of its header has more than {MAX_FIELD} bytes, it is damaged."
            )
        if self.nrrd and not re.match(rb"NRRD000\d", self.text):
            raise ValueError(f"{self.name} cannot be read: it does not begin as NRRD files do (NRRD000...).")
        if not self.nrrd and re.search(rb"(?m)^[ \t]*(Name|Comment)[ \t]*=[^\n]{241}", self.text):
            raise ValueError(f"{self.name} cannot be read: Name or Comment of its header has more than 240 bytes.")
        self.fields: dict[str, str] = {}
        for line in lines:
            key, found, value = line.partition(b":" if self.nrrd else b"=")
            if not found or line.startswith(b"#") or self.nrrd and value.startswith(b"="):
                continue
            name = re.sub(r"\s", "", key.decode("latin-1")).lower()
            if name in self.fields:
                raise ValueError(f"{self.name} cannot be read: duplicate field {name[:40]!r} in its header.")
            self.fields[name] = value.decode("latin-1").strip()

    def numbers(self, name: str, count: int | None, least: float | None = None, whole: bool = False) -> list[float]:
        """Numbers of a field, as many as there are axes."""
        text = self.fields[name]
        words = re.sub(r"[(),]", " ", text).split()
        try:
            found = [float(word) for word in words]
        except ValueError:
            found = []
        right = bool(found) and (count is None or len(found) == count) and all(np.isfinite(found))
        if whole:
            right = right and all(number == int(number) for number in found)
        if not right or least is not None and min(found) < least or max(map(abs, found)) > 1e12:
            wanted = f"{'some' if count is None else count} {'whole ' if whole else ''}numbers"
            raise ValueError(
                f"{self.name} cannot be read: {name} is {text[:60]!r} in its header, expected {wanted}"
                f"{'' if least is None else f' of at least {least:g}'}."
            )
        return found

    def need(self, *names: str) -> None:
        missing = [name for name in names if not self.fields.get(name)]
        if missing:
            raise ValueError(f"{self.name} cannot be read: its header lacks {missing}; it is truncated or damaged.")


def check_header(path: Path) -> bytes:
    """
    Reads the header of a NRRD, MHA or MHD file, at most 64 KiB.

    Returns:
        The header's bytes.

    Raises:
        ValueError: something in it is missing, impossible, or points outside the file's folder (field, found, expected).
    """
    header = _Header(path)
    if header.nrrd:
        _check_nrrd(header)
    else:
        _check_meta(header)
    return header.text


def _check_nrrd(header: _Header) -> None:
    header.need("dimension", "type", "sizes", "encoding")
    dimension = int(header.numbers("dimension", 1, 1, whole=True)[0])
    sizes = header.numbers("sizes", _axes(header, dimension), 1, whole=True)
    kind, encoding = header.fields["type"].lower(), header.fields["encoding"].lower()
    if kind not in _NRRD_BYTES:
        raise ValueError(f"{header.name} cannot be read: its type is {kind[:40]!r}, expected one number per voxel.")
    if encoding not in _ENCODINGS:
        raise ValueError(
            f"{header.name} cannot be read: its encoding is {encoding[:40]!r}, expected one of {_ENCODINGS}."
        )
    if _NRRD_BYTES[kind] > 1 and encoding not in ("ascii", "text", "txt"):
        header.need("endian")
    if header.fields.get("endian", "little").lower() not in ("little", "big"):
        raise ValueError(
            f"{header.name} cannot be read: its endian is {header.fields['endian'][:40]!r}, expected little or big."
        )
    if "spacings" in header.fields and "spacedirections" not in header.fields:
        words = header.fields["spacings"].split()
        if len(words) != dimension:
            header.numbers("spacings", dimension)
    if "spaceorigin" in header.fields:
        header.numbers("spaceorigin", None)
    for name in ("byteskip", "lineskip"):
        if name in header.fields:
            header.numbers(name, 1, -1 if name == "byteskip" else 0, whole=True)
    _check_directions(header, dimension)
    stated = _check_size(header, sizes, _NRRD_BYTES[kind])
    detached = header.fields.get("datafile")
    raw = encoding == "raw" and not {"byteskip", "lineskip"} & set(header.fields)
    _check_voxels(header, detached, stated if raw else None)


def _check_directions(header: _Header, dimension: int) -> None:
    if "spacedirections" not in header.fields:
        return
    vectors = re.findall(r"none|\([^()]*\)", header.fields["spacedirections"])
    rest = re.sub(r"none|\([^()]*\)", "", header.fields["spacedirections"]).strip()
    lengths = set()
    for vector in [vector for vector in vectors if vector != "none"]:
        header.fields["spacedirections[]"] = vector
        lengths.add(len(header.numbers("spacedirections[]", None)))
    if rest or len(vectors) != dimension or len(lengths) != 1:
        raise ValueError(
            f"{header.name} cannot be read: its space directions are {header.fields['spacedirections'][:60]!r}, expected "
            f"{dimension} vectors of one length."
        )


def _check_meta(header: _Header) -> None:
    header.need("ndims", "dimsize", "elementtype", "elementdatafile")
    dimension = _axes(header, int(header.numbers("ndims", 1, whole=True)[0]))
    sizes = header.numbers("dimsize", dimension, 1, whole=True)
    kind = header.fields["elementtype"].upper()
    if kind not in _MET_BYTES:
        raise ValueError(
            f"{header.name} cannot be read: its ElementType is {kind[:40]!r}, expected one number per voxel."
        )
    channels = 1.0
    if "elementnumberofchannels" in header.fields:
        channels = header.numbers("elementnumberofchannels", 1, 1, whole=True)[0]
    lengths = {"elementspacing": dimension, "elementsize": dimension, "offset": dimension, "position": dimension}
    lengths |= {"origin": dimension, "centerofrotation": dimension}
    lengths |= dict.fromkeys(("transformmatrix", "rotation", "orientation"), dimension**2)
    for name, count in lengths.items():
        if name in header.fields:
            header.numbers(name, count)
    for name in ("headersize", "compresseddatasize"):
        if name in header.fields:
            header.numbers(name, 1, -1 if name == "headersize" else 0, whole=True)
    for name in ("binarydata", "compresseddata", "binarydatabyteordermsb", "elementbyteordermsb"):
        if header.fields.get(name, "true").lower() not in ("true", "false"):
            raise ValueError(
                f"{header.name} cannot be read: {name} is {header.fields[name][:40]!r}, expected True or False."
            )
    stated = _check_size(header, [*sizes, channels], _MET_BYTES[kind])
    place = header.fields["elementdatafile"]
    plain = header.fields.get("binarydata", "true").lower() == "true" and "headersize" not in header.fields
    plain = plain and header.fields.get("compresseddata", "false").lower() == "false" and _MET_BYTES[kind] < 8
    _check_voxels(header, None if place.upper() == "LOCAL" else place, stated if plain else None)


def _axes(header: _Header, dimension: int) -> int:
    if not 2 <= dimension <= 5:
        raise ValueError(f"{header.name} cannot be read: its header gives {dimension} axes, expected 3 (2 to 5).")
    return dimension


def _check_size(header: _Header, sizes: list[float], item: int) -> int:
    stated = float(np.prod(sizes)) * item
    if stated > 2 * nifti.MAX_BYTES:
        raise ValueError(
            f"{header.name} says that its voxels take {stated / 2**30:,.1f} GiB, more than {2 * nifti.MAX_BYTES >> 30} GiB: "
            "its header is damaged."
        )
    return int(stated)


def _check_voxels(header: _Header, detached: str | None, stated: int | None) -> None:
    """The file with the voxels lies in the header's folder, and is long enough where they are stored plainly."""
    file, start = header.path, len(header.text)
    if detached is not None:
        if detached.upper().startswith("LIST") or "%" in detached:
            raise ValueError(f"{header.name} spreads its voxels over several files; expected one file.")
        folder = header.path.parent.resolve()
        file, start = (folder / detached).resolve(), 0
        if not file.is_relative_to(folder):
            raise ValueError(f"{header.name} cannot be read: its voxels would come from outside of its folder.")
        if not file.is_file():
            raise ValueError(f"{header.name} cannot be read: the file of its voxels is not in its folder.")
    left = file.stat().st_size - start
    if stated is not None and left < stated:
        raise ValueError(
            f"{header.name} cannot be read: it is truncated, {left} bytes cannot hold the {stated} of its voxels."
        )


def read(path: str | os.PathLike[str], volume_index: int | None = None) -> Scan:
    """
    A NRRD or MetaImage file of one volume, through SimpleITK; `volume_index` is of no use here.

    Raises:
        ValueError: truncated or broken, several volumes, impossible size or geometry.
    """
    try:
        import SimpleITK
    except ImportError:
        raise ImportError("NRRD and MHA files need SimpleITK: pip install 'itemized-clip-hf[itk]'.") from None
    path = Path(path)
    header = check_header(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = [float(count) for count in reader.GetSize()]
        if reader.GetNumberOfComponents() != 1 or len(size) < 3 or min(size[:3]) < 2 or max([1, *size[3:]]) > 1:
            raise ValueError(
                f"{path.name} has {reader.GetNumberOfComponents()} x {size}; expected one volume of single numbers."
            )
        if 8 * np.prod(size) > 2 * nifti.MAX_BYTES:
            raise ValueError(f"{path.name} would take more than {nifti.MAX_BYTES >> 30} GiB: its header is damaged.")
        _verify_compressed(path, reader, header)
        image = reader.Execute()
    except (RuntimeError, EOFError, zlib.error):
        raise ValueError(f"{path.name} cannot be read: it is truncated, damaged or of another kind.") from None
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:3, :3]
    spacing = np.array(image.GetSpacing()[:3])
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = image.GetOrigin()[:3]
    if not nifti.is_usable_affine(affine):
        raise ValueError(f"{path.name} has no usable geometry (its affine is singular, not finite, or not in mm).")
    affine = np.diag([-1.0, -1, 1, 1]) @ affine @ nifti.DEPTH_FIRST
    array = SimpleITK.GetArrayFromImage(image)
    array = array.reshape(array.shape[-3:])
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path.name} holds values of type {array.dtype}, expected one number per voxel.")
    kind = path.suffix[1:].upper()
    notes = (
        {} if _states_orientation(path, reader, header) else {"orientation-unknown": "its header gives no orientation"}
    )
    return Scan(array, affine, path.stem, str(path), history=[f"{kind} file read through SimpleITK"], notes=notes)


def _states_orientation(path: Path, reader: Any, header: bytes) -> bool:
    """Whether the header says how the axes lie; ITK silently takes them along the scanner's otherwise."""
    if path.suffix.lower() == ".nrrd":
        return "NRRD_space" in reader.GetMetaDataKeys()
    return re.search(rb"(?m)^(TransformMatrix|Rotation|Orientation) *=", header) is not None


def _verify_compressed(path: Path, reader: Any, header: bytes) -> None:
    """ITK goes on with what it could inflate of damaged voxels: their checksum and size are looked at here."""
    if path.suffix.lower() == ".nrrd":
        compressed = re.search(rb"(?mi)^encoding: *gz", header)
        apart = re.search(rb"(?mi)^(data ?file|byte ?skip|line ?skip):", header)
        voxels, start, window_bits = None if apart else path, len(header), 31
    else:
        compressed = re.search(rb"(?m)^CompressedData *= *True", header)
        where = re.search(rb"ElementDataFile *= *([^\r\n]*)", header)
        name = where[1].decode(errors="replace").strip() if where else "LOCAL"
        local = name.upper() == "LOCAL"
        voxels, start, window_bits = path if local else path.parent / name, len(header) if local else 0, 47
    if not compressed or voxels is None or not voxels.is_file():
        return
    left = int(np.prod([float(count) for count in reader.GetSize()])) * reader.GetNumberOfComponents()
    left *= _ITK_BYTES.get(reader.GetPixelIDValue(), 0)
    if not left:
        return
    with voxels.open("rb") as file:
        file.seek(start)
        stream = nifti.Inflate(file, window_bits)
        while left > 0 and (piece := stream.read(min(left, 1 << 24))):
            left -= len(piece)
        if left or stream.read(1):
            raise RuntimeError


# Bytes of a voxel by SimpleITK's numbers of pixel types: (un)signed integers of 8 to 64 bits, then two floats.
_ITK_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 8, 7: 8, 8: 4, 9: 8}
