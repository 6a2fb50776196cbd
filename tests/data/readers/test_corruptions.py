"""
Damaged and hostile files. Each is refused with a clear ValueError or OSError, or gives a scan that is right; a value that a
file may legally hold (a flipped voxel without checksum, another spacing) is counted apart. Never another exception, a hang or a
bomb.
"""

import gzip
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

from dicom_files import make_enhanced, make_grid, make_series, save, truth, world, write, zip_folder
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from itemized_clip_hf.data.kinds import volume_suffixes
from itemized_clip_hf.data.readers.dicom import read_dicom
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.data.study import Scan, Study

pytestmark = pytest.mark.timeout(60)
OUTCOMES: Counter = Counter()
AFFINE = np.array([[-1.5, 0, 0, 30.0], [0, 1.25, 0, -40], [0, 0, 4, -20], [0, 0, 0, 1]])
SHAPE = (14, 12, 6)
VOXELS = np.rint(
    world(np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3])
)
RIGHT = Scan(VOXELS.T, AFFINE @ np.eye(4)[[2, 1, 0, 3]])


def count(group: str, outcome: str) -> str:
    OUTCOMES[group, outcome] += 1
    return outcome


def try_read(path, read=read_file, **settings):
    """The scans, or None where the file is refused as it should be."""
    try:
        found = read(path, **settings)
    except (ValueError, OSError) as error:
        text = str(error)
        assert type(error).__name__ in ("ValueError", "FileNotFoundError"), f"{type(error)}: {error}"
        assert len(text) > 30 and "\n" not in text and "Traceback" not in text and text[-1] in ".)", text
        assert not re.search(r"object at 0x|<class|errno|argument|NoneType", text), text
        return None
    return list(found.scans.values()) if isinstance(found, Study) else [found]


def assert_sane(scan: Scan) -> None:
    """A volume of numbers in a space that exists."""
    assert scan.array.ndim == 3 and min(scan.array.shape) >= 2 and scan.array.dtype.kind in "iuf"
    assert scan.affine is not None and np.isfinite(scan.affine).all()
    assert min(scan.spacing) >= 1e-3 and max(scan.spacing) <= 1e3
    assert abs(np.linalg.det(scan.affine[:3, :3] / scan.spacing)) > 1e-4


def same(scan: Scan, expected: Scan = RIGHT) -> bool:
    same_space = np.allclose(scan.affine, expected.affine, atol=1e-4)
    return scan.array.shape == expected.array.shape and np.array_equal(scan.array, expected.array) and same_space


def check(group: str, path, allowed=("refused", "right"), legal: bool = False) -> str:
    """Reads one file with one scan and counts what came out."""
    scans = try_read(path)
    if scans is None:
        outcome = "refused"
    else:
        (scan,) = scans
        assert_sane(scan)
        outcome = "right" if same(scan) else "legal"
    assert outcome in (*allowed, *(("legal",) if legal else ())), (outcome, path)
    return count(group, outcome)


def nifti_bytes(dtype=np.int16, kind=nibabel.Nifti1Image, voxels=VOXELS, affine=AFFINE) -> bytes:
    image = kind(voxels.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def put(data: bytes, offset: int, code: str, *values) -> bytes:
    packed = struct.pack("<" + code, *values)
    return data[:offset] + packed + data[offset + len(packed) :]


def flip(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def make_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# NIfTI.


def test_the_undamaged_file_is_right(tmp_path):
    for name, data in (("a.nii", nifti_bytes()), ("a.nii.gz", gzip.compress(nifti_bytes()))):
        (scan,) = try_read(make_file(tmp_path / name, data))
        assert same(scan)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_truncated_nifti(tmp_path, name):
    data = nifti_bytes() if name.endswith("nii") else gzip.compress(nifti_bytes())
    for length in np.random.default_rng(0).integers(0, len(data), 25):
        check(f"truncated {name[2:]}", make_file(tmp_path / name, data[:length]), ["refused"])


def test_bits_flipped_in_compressed_nifti(tmp_path):
    data = gzip.compress(nifti_bytes(), mtime=0)
    rng = np.random.default_rng(1)
    for _ in range(60):
        position, bit = int(rng.integers(len(data))), int(rng.integers(8))
        in_container = 4 <= position < 10 or position == 3  # time, system and unused flags of gzip itself
        allowed = ["refused", "right"] if in_container else ["refused"]
        check("bit flip in .nii.gz", make_file(tmp_path / "a.nii.gz", flip(data, position, bit)), allowed)


def test_bits_flipped_in_voxels_without_checksum(tmp_path):
    data = nifti_bytes()
    rng = np.random.default_rng(2)
    for _ in range(10):
        path = make_file(tmp_path / "a.nii", flip(data, int(rng.integers(352, len(data))), int(rng.integers(8))))
        (scan,) = try_read(path)
        assert (scan.array != RIGHT.array).sum() == 1 and np.allclose(scan.affine, RIGHT.affine, atol=1e-4)
        count("bit flip in .nii voxels", "legal")


# Fields whose values say how large, where and how bright the voxels are: other values are another file.
_GEOMETRY = {*range(76, 92), *range(112, 120), 123, *range(252, 328)}
_LAYOUT = {*range(40, 56), *range(70, 74), *range(108, 112), *range(344, 348), *range(0, 4)}


def test_bits_flipped_in_nifti_header(tmp_path):
    data = nifti_bytes()
    rng = np.random.default_rng(3)
    positions = [*rng.choice(sorted(_LAYOUT), 40), *rng.choice(sorted(_GEOMETRY), 60), *rng.integers(0, 348, 40)]
    for position in positions:
        path = make_file(tmp_path / "a.nii", flip(data, int(position), int(rng.integers(8))))
        check("bit flip in .nii header", path, legal=position in _GEOMETRY)


HEADERS = {
    "zero spacing": (80, "f", 0.0),
    "negative spacing": (84, "f", -1.25),
    "NaN spacing": (88, "f", np.nan),
    "infinite spacing": (80, "f", np.inf),
    "singular sform": (280, "4f", 0, 0, 0, 0),
    "parallel sform rows": (280, "8f", 0, 1.25, 0, -40, 0, 1.25, 0, -40),
    "NaN sform": (284, "f", np.nan),
    "infinite sform": (292, "f", np.inf),
    "huge sform": (292, "f", 1e30),
    "tiny sform": (280, "12f", *(AFFINE[:3] * 1e-12).ravel()),
    "huge dimensions": (42, "3h", 32767, 32767, 32767),
    "one huge dimension": (42, "h", 32767),
    "zero dimension": (44, "h", 0),
    "negative dimension": (46, "h", -6),
    "no axes": (40, "h", 0),
    "two axes": (40, "h", 2),
    "nine axes": (40, "h", 9),
    "negative axes": (40, "h", -3),
    "4-D": (40, "5h", 4, 14, 12, 3, 2),
    "5-D": (40, "6h", 5, 14, 12, 3, 1, 2),
    "5-D vectors": (40, "6h", 5, 7, 4, 6, 1, 6),
    "flat": (42, "3h", 14, 72, 1),
    "unknown datatype": (70, "h", 999),
    "negative datatype": (70, "h", -1),
    "binary datatype": (70, "2h", 1, 1),
    "RGB": (70, "2h", 128, 24),
    "complex": (70, "2h", 32, 64),
    "wider datatype": (70, "2h", 64, 64),
    "narrower datatype": (70, "2h", 2, 8),
    "bitpix of another type": (72, "h", 32),
    "bitpix zero": (72, "h", 0),
    "voxels before the header ends": (108, "f", 100.0),
    "voxels start at a negative byte": (108, "f", -352.0),
    "voxels start at NaN": (108, "f", np.nan),
    "voxels start at infinity": (108, "f", np.inf),
    "voxels start late": (108, "f", 400.0),
    "voxels start far away": (108, "f", 1e9),
    "infinite slope": (112, "2f", np.inf, 0.0),
    "NaN intercept": (112, "2f", 2.0, np.nan),
    "infinite intercept": (112, "2f", 1.0, -np.inf),
    "pair of files": (344, "4s", b"ni1\0"),
    "no magic": (344, "4s", b"\0\0\0\0"),
    "size of header": (0, "i", 347),
}
HARMLESS = {
    "denormal spacing beside a good sform": (80, "f", 1e-40),
    "NaN slope": (112, "2f", np.nan, 5.0),
    "zero slope": (112, "2f", 0.0, 7.0),
    "time units": (123, "B", 2 | 8),
    "description": (148, "20s", b"\xff" * 20),
    "display range": (124, "2f", np.nan, np.inf),
    "trailing axes": (40, "8h", 7, 14, 12, 6, 1, 1, 1, 1),
    "unused axes": (40, "8h", 3, 14, 12, 6, 0, -4, 999, 0),
    "damaged qform beside a good sform": (252, "2h3f", 1, 1, np.nan, 5.0, 7.0),
}


@pytest.mark.parametrize("compressed", [False, True], ids=["nii", "gz"])
@pytest.mark.parametrize("kind", [*HEADERS, *HARMLESS])
def test_nonsense_in_nifti_header(tmp_path, kind, compressed):
    data = put(nifti_bytes(), *(HEADERS | HARMLESS)[kind])
    path = make_file(tmp_path / ("a.nii.gz" if compressed else "a.nii"), gzip.compress(data) if compressed else data)
    assert check(".nii header values", path) == ("refused" if kind in HEADERS else "right")


def test_one_volume_of_four_dimensions(tmp_path):
    both = np.stack([VOXELS, VOXELS[::-1]], -1).astype(np.int16)
    path = make_file(tmp_path / "a.nii", nifti_bytes(voxels=both))
    assert check("4-D .nii", path) == "refused"
    for index, expected in ((0, VOXELS), (1, VOXELS[::-1])):
        (scan,) = try_read(path, volume_index=index)
        assert np.array_equal(scan.array, expected.T) and count("4-D .nii", "right")
    for index in (-1, 2, 10**9):
        assert try_read(path, volume_index=index) is None and count("4-D .nii", "refused")


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("endianness", "<>")
def test_every_lawful_way_to_store_it(tmp_path, dtype, kind, endianness):
    image = kind(VOXELS.astype(dtype), AFFINE, dtype=dtype)
    image.header.set_xyzt_units("mm")
    image = kind(image.dataobj, AFFINE, image.header.as_byteswapped(endianness))
    check("lawful .nii", make_file(tmp_path / "a.nii", image.to_bytes()), ["right"])


@pytest.mark.parametrize("units, factor", [("meter", 1e-3), ("micron", 1e3)])
@pytest.mark.parametrize("form", ["sform", "qform", "neither"])
def test_units_of_length(tmp_path, units, factor, form):
    affine = np.diag([factor] * 3 + [1.0]) @ AFFINE
    image = nibabel.Nifti1Image(VOXELS.astype(np.int16), affine)
    image.set_sform(affine, int(form == "sform"))
    image.set_qform(affine, int(form == "qform"))
    image.header.set_xyzt_units(units)
    path = make_file(tmp_path / "a.nii", image.to_bytes())
    if form != "neither":
        check("lawful .nii", path, ["right"])
    else:
        (scan,) = try_read(path)
        assert "orientation-unknown" in scan.notes and np.allclose(scan.spacing, [4, 1.25, 1.5], rtol=1e-5)


# DICOM.


def series_bytes(slices=10, **settings) -> list[bytes]:
    from io import BytesIO

    made = []
    for one in make_series(make_grid(slices=slices, size=(16, 18), **settings)):
        stream = BytesIO()
        one.save_as(stream, enforce_file_format=True)
        made.append(stream.getvalue())
    return made


def write_series(folder: Path, files: list[bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(files):
        (folder / f"{number:03d}.dcm").write_bytes(data)
    return folder


def check_dicom(group: str, path, allowed=("refused", "right", "noted"), legal: bool = False, tolerance=0.51) -> str:
    """
    `right`: every voxel as in the world; `noted`: so within what linear interpolation gives, and the study says what happened.
    """
    scans = try_read(path, read_dicom)
    if scans is None:
        return count(group, "refused")
    study = read_dicom(path)
    worst = 0.0
    for scan in scans:
        assert_sane(scan)
        inside = scan.array != -1024
        worst = max(worst, float(np.abs(scan.array - truth(scan))[inside].max()))
    said = bool(study.skipped) or any(scan.notes for scan in scans)
    whole = len(scans) == 1 and len(scans[0].array) == 10 and not said
    if worst <= tolerance and (whole or said):
        outcome = "right" if whole else "noted"
    elif worst <= 25 and said:
        outcome = "noted"
    else:
        outcome = "legal"
    assert outcome in (*allowed, *(("legal",) if legal else ())), (outcome, worst, study.skipped, scans)
    return count(group, outcome)


def test_truncated_slices(tmp_path):
    files = series_bytes()
    rng = np.random.default_rng(4)
    for number in range(20):
        victim = int(rng.integers(10))
        length = int(rng.integers(len(files[victim])))
        damaged = [data[:length] if n == victim else data for n, data in enumerate(files)]
        assert check_dicom("one DICOM slice truncated", write_series(tmp_path / f"{number}", damaged)) == "noted"
    for share in (0.0, 0.1, 0.3, 0.6, 0.99):
        damaged = [data[: int(share * len(data))] for data in files]
        assert check_dicom("all DICOM slices truncated", write_series(tmp_path / f"{share}", damaged)) == "refused"


def lawful_bytes(data: bytes) -> set[int]:
    """Positions of values that may be anything as far as one file can tell: numbers of geometry and scale, pixels, names."""
    from io import BytesIO

    dataset = pydicom.dcmread(BytesIO(data))
    positions: set[int] = set()
    for name in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"),
        *("PixelRepresentation", "HighBit", "BitsStored", "SeriesInstanceUID", "SOPInstanceUID"),
    ):
        element = dataset.get_item(name)
        tag = struct.pack("<HH", element.tag.group, element.tag.element)
        start = data.index(tag + element.VR.encode(), 132)
        positions |= {
            *range(
                start, start + 8 + len(element.value if isinstance(element.value, bytes) else str(element.value)) + 4
            )
        }
    return positions


@pytest.mark.slow
def test_bits_flipped_in_a_dicom_header(tmp_path):
    files = series_bytes()
    header = len(files[4]) - 16 * 18 * 2
    lawful = lawful_bytes(files[4])
    rng = np.random.default_rng(5)
    for number in range(60):
        position = int(rng.integers(header))
        damaged = [*files[:4], flip(files[4], position, int(rng.integers(8))), *files[5:]]
        path = write_series(tmp_path / f"{number}", damaged)
        check_dicom("bit flip in a DICOM header", path, legal=position in lawful)


def test_noise_in_the_middle_of_dicom(tmp_path):
    files = series_bytes()
    header = len(files[4]) - 16 * 18 * 2
    rng = np.random.default_rng(6)
    for number in range(20):
        position = int(rng.integers(132, header - 40))
        noise = rng.integers(0, 256, 40, dtype=np.uint8).tobytes()
        damaged = [*files[:4], files[4][:position] + noise + files[4][position + 40 :], *files[5:]]
        check_dicom("noise in a DICOM header", write_series(tmp_path / f"{number}", damaged), legal=True)


NAN = ["nan", "0", "0"]
DICOM = {
    "no position": dict(ImagePositionPatient=None),
    "no orientation": dict(ImageOrientationPatient=None),
    "no spacing": dict(PixelSpacing=None),
    "NaN position": dict(ImagePositionPatient=NAN),
    "far position": dict(ImagePositionPatient=["1e30", "0", "0"]),
    "two numbers of position": dict(ImagePositionPatient=["1", "0"]),
    "words in position": dict(ImagePositionPatient=["a", "b", "c"]),
    "zero orientation": dict(ImageOrientationPatient=["0"] * 6),
    "NaN orientation": dict(ImageOrientationPatient=[*NAN, *NAN]),
    "five cosines": dict(ImageOrientationPatient=["1", "0", "0", "0", "1"]),
    "zero spacing": dict(PixelSpacing=["0", "0"]),
    "negative spacing": dict(PixelSpacing=["-1", "1"]),
    "infinite spacing": dict(PixelSpacing=["inf", "1"]),
    "tiny spacing": dict(PixelSpacing=["1e-9", "1e-9"]),
    "zero slope": dict(RescaleSlope="0"),
    "NaN slope": dict(RescaleSlope="nan"),
    "infinite intercept": dict(RescaleIntercept="inf"),
    "words for a slope": dict(RescaleSlope="x"),
    "huge rows": dict(Rows=65535),
    "huge rows and columns": dict(Rows=65535, Columns=65535),
    "no rows": dict(Rows=0),
    "fewer rows": dict(Rows=8),
    "rows and columns swapped": dict(Rows=9, Columns=18),
    "many frames": dict(NumberOfFrames=2000000000),
    "negative frames": dict(NumberOfFrames=-5),
    "7 bits": dict(BitsAllocated=7),
    "no bits": dict(BitsAllocated=0),
    "64 bits": dict(BitsAllocated=64),
    "8 bits": dict(BitsAllocated=8),
    "stored beyond allocated": dict(BitsStored=40),
    "strange representation": dict(PixelRepresentation=5),
    "no samples": dict(SamplesPerPixel=0, PhotometricInterpretation="RGB"),
    "no photometric interpretation": dict(PhotometricInterpretation=None),
    "one position": dict(ImagePositionPatient=["0", "0", "0"]),
    "no pixels": dict(PixelData=None),
    "empty pixels": dict(PixelData=b""),
    "half of the pixels": dict(PixelData=bytes(16 * 18)),
    "two pictures": dict(PixelData=bytes(4 * 16 * 18)),
    "no modality": dict(Modality=None),
}


@pytest.mark.parametrize("kind", DICOM)
def test_nonsense_in_dicom_fields(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "_writing_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    made = make_series(make_grid(slices=10, size=(16, 18)))
    for one in made:
        for name, value in DICOM[kind].items():
            if value is None:
                delattr(one, name)
            else:
                element = one[name] if name in one else None
                vr = element.VR if element is not None else pydicom.datadict.dictionary_VR(name)
                if vr == "DS":  # pydicom would not write these: as text of the same field
                    one[name] = pydicom.dataelem.DataElement(name, "LO", value)
                else:
                    one.add_new(name, vr, value)
    folder = tmp_path / "s"
    folder.mkdir()
    for number, one in enumerate(made):
        one.save_as(folder / f"{number}.dcm", enforce_file_format=True)
        data = (folder / f"{number}.dcm").read_bytes()
        for name in DICOM[kind]:  # LO back to DS, as the standard has it
            tag = pydicom.tag.Tag(name)
            packed = struct.pack("<HH", tag.group, tag.elem)
            if pydicom.datadict.dictionary_VR(name) == "DS":
                data = data.replace(packed + b"LO", packed + b"DS")
        (folder / f"{number}.dcm").write_bytes(data)
    allowed = ["right"] if kind in ("strange representation", "no photometric interpretation") else []
    check_dicom("DICOM fields", folder, ["refused", *allowed])


WRONG_SYNTAX = {
    "says JPEG 2000, holds plain pixels": (None, JPEG2000Lossless),
    "says RLE, holds plain pixels": (None, RLELossless),
    "says plain, holds RLE": (RLELossless, ExplicitVRLittleEndian),
    "says implicit, holds RLE": (RLELossless, ImplicitVRLittleEndian),
    "says JPEG 2000, holds RLE": (RLELossless, JPEG2000Lossless),
    "says implicit, is explicit": (None, ImplicitVRLittleEndian),
    "says explicit, is implicit": (ImplicitVRLittleEndian, ExplicitVRLittleEndian),
    "says big endian, is little": (None, pydicom.uid.ExplicitVRBigEndian),
    "unknown": (None, pydicom.uid.UID("1.2.3.4.5")),
    "deflated": (None, pydicom.uid.DeflatedExplicitVRLittleEndian),
    "a video": (None, pydicom.uid.MPEG2MPML),
}


@pytest.mark.parametrize("noisy", [False, True], ids=["smooth", "noisy"])
@pytest.mark.parametrize("kind", WRONG_SYNTAX)
def test_wrong_transfer_syntax(tmp_path, kind, noisy):
    """Noise grows when it is run-length encoded, so that the length of the pixels does not give it away."""
    real, stated = WRONG_SYNTAX[kind]
    made = make_series(make_grid(slices=10, size=(16, 18)))
    if noisy:
        for one in made:
            noise = np.random.default_rng(0).integers(1000, 1400, (16, 18))
            one.PixelData = noise.astype(np.uint16).tobytes()
    folder = save(made, tmp_path / "s", real)
    for file in folder.iterdir():
        data = file.read_bytes()
        now = pydicom.dcmread(file, stop_before_pixels=True).file_meta.TransferSyntaxUID
        old_value, new_value = (str(uid).encode() + b"\0" * (len(uid) % 2) for uid in (now, stated))
        element = b"\x02\0\x10\0UI"
        old, new = (element + struct.pack("<H", len(value)) + value for value in (old_value, new_value))
        assert old in data
        (length,) = struct.unpack_from("<I", data, 140)
        data = data[:140] + struct.pack("<I", length + len(new) - len(old)) + data[144:].replace(old, new, 1)
        file.write_bytes(data)
    if kind == "a video":
        with pytest.raises(ValueError, match="as a video is"):
            read_dicom(folder)
    if noisy:
        scans = try_read(folder, read_dicom)
        if scans is not None:  # the encoding can be told from the data, and was
            values = np.stack([scan.array for scan in scans])
            assert values.shape == (1, 10, 16, 18) and np.array_equal(values[0, 0], noise - 1024)
        count("wrong transfer syntax", "refused" if scans is None else "right")
    else:
        check_dicom("wrong transfer syntax", folder, ["refused", "right"])


def test_missing_duplicate_and_mixed_slices(tmp_path):
    files = series_bytes()
    other = series_bytes(orientation="coronal")
    rng = np.random.default_rng(7)
    for number in range(10):
        missing = set(rng.choice(np.arange(1, 9), 1 + number % 3, replace=False))
        kept = [data for n, data in enumerate(files) if n not in missing]
        assert check_dicom("missing slices", write_series(tmp_path / f"m{number}", kept)) == "noted"
        twice = files + [files[n] for n in rng.choice(10, 3, replace=False)]
        assert check_dicom("duplicate slices", write_series(tmp_path / f"d{number}", twice)) == "noted"
        mixed = [(files + other)[n] for n in rng.permutation(20)]
        scans = try_read(write_series(tmp_path / f"x{number}", mixed), read_dicom)
        assert len(scans) == 2 and all(np.abs(scan.array - truth(scan)).max() < 0.51 for scan in scans)
        count("mixed series", "right")


ENHANCED = {
    "more frames than described": lambda one: setattr(one, "NumberOfFrames", 11),
    "many more frames": lambda one: setattr(one, "NumberOfFrames", 2_000_000_000),
    "fewer frames": lambda one: setattr(one, "NumberOfFrames", 5),
    "no frames described": lambda one: delattr(one, "PerFrameFunctionalGroupsSequence"),
    "no orientation": lambda one: delattr(one.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"),
    "no spacing": lambda one: delattr(one.SharedFunctionalGroupsSequence[0], "PixelMeasuresSequence"),
    "nothing shared": lambda one: delattr(one, "SharedFunctionalGroupsSequence"),
    "empty shared": lambda one: setattr(one, "SharedFunctionalGroupsSequence", []),
    "a frame without position": lambda one: delattr(one.PerFrameFunctionalGroupsSequence[3], "PlanePositionSequence"),
    "frames in one place": lambda one: [
        setattr(frame.PlanePositionSequence[0], "ImagePositionPatient", ["0", "0", "0"])
        for frame in one.PerFrameFunctionalGroupsSequence
    ],
    "pixels of half the frames": lambda one: setattr(one, "PixelData", one.PixelData[: len(one.PixelData) // 2]),
    "pixels of more frames": lambda one: setattr(one, "PixelData", one.PixelData + one.PixelData),
    "huge frames": lambda one: (setattr(one, "Rows", 8000), setattr(one, "Columns", 8000)),
}


@pytest.mark.parametrize("kind", ENHANCED)
def test_damaged_enhanced(tmp_path, kind):
    one = make_enhanced(make_grid(slices=10, size=(16, 18)))
    ENHANCED[kind](one)
    assert check_dicom("enhanced DICOM", write(one, tmp_path / "one.dcm")) == "refused"


def test_truncated_enhanced(tmp_path):
    data = write(make_enhanced(make_grid(slices=10, size=(16, 18))), tmp_path / "one.dcm").read_bytes()
    for length in np.random.default_rng(8).integers(0, len(data) - 1, 15):
        assert check_dicom("enhanced DICOM", make_file(tmp_path / "cut.dcm", data[:length])) == "refused"


# Zips.


@pytest.fixture
def zipped(tmp_path) -> bytes:
    return zip_folder(write_series(tmp_path / "zipped", series_bytes()), tmp_path / "good.zip").read_bytes()


def test_truncated_zip(tmp_path, zipped):
    for length in np.random.default_rng(9).integers(0, len(zipped), 15):
        assert check_dicom("truncated zip", make_file(tmp_path / "a.zip", zipped[:length])) == "refused"


def test_bits_flipped_in_zip(tmp_path, zipped):
    rng = np.random.default_rng(10)
    for _ in range(50):
        path = make_file(tmp_path / "a.zip", flip(zipped, int(rng.integers(len(zipped))), int(rng.integers(8))))
        check_dicom("bit flip in a zip", path)


def test_encrypted_and_strangely_compressed_zip(tmp_path, zipped):
    encrypted, method = bytearray(zipped), bytearray(zipped)
    for signature, flags, compression in ((b"PK\x03\x04", 6, 8), (b"PK\x01\x02", 8, 10)):
        at = zipped.find(signature)
        while at >= 0:
            encrypted[at + flags] |= 1
            method[at + compression] = 97
            at = zipped.find(signature, at + 4)
    with pytest.raises(ValueError, match="encrypted"):
        read_dicom(make_file(tmp_path / "encrypted.zip", encrypted))
    with pytest.raises(ValueError, match="compressed in a way"):
        read_dicom(make_file(tmp_path / "method.zip", method))
    OUTCOMES["hostile zip", "refused"] += 2


def test_names_that_climb_out_of_a_zip(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    path = tmp_path / "deep" / "er" / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, data in enumerate(series_bytes()):
            archive.writestr(["../../../{}.dcm", "/tmp/../{}.dcm", "C:\\{}.dcm"][number % 3].format(number), data)
    before = sorted(tmp_path.rglob("*"))
    assert check_dicom("hostile zip", path) == "right"
    assert sorted(tmp_path.rglob("*")) == before


def test_zip_in_a_zip(tmp_path, zipped):
    path = tmp_path / "outer.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.zip", zipped)
    assert check_dicom("hostile zip", path) == "refused"


# Other kinds, and what is none of them.


@pytest.mark.parametrize("suffix", volume_suffixes())
def test_something_else_with_the_suffix_of_a_volume(tmp_path, suffix, capfd):
    noise = np.random.default_rng(11).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    contents = [b"", b"hello, this is a text\n" * 20, noise, bytes(4000), b"\x1f\x8b" + noise, b"PK\x03\x04" + noise]
    for number, content in enumerate(contents):
        path = make_file(tmp_path / f"{number}{suffix}", content)
        assert try_read(path) is None, path
        count("something else by suffix", "refused")
    (tmp_path / f"folder{suffix}").mkdir()
    assert try_read(tmp_path / f"folder{suffix}") is None
    assert try_read(tmp_path / f"missing{suffix}") is None
    OUTCOMES["something else by suffix", "refused"] += 2


class Payload:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_pickles_are_not_run(tmp_path):
    trace = tmp_path / "executed"
    payload = Payload(trace)
    torch.save(payload, tmp_path / "new.pt")
    torch.save(payload, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"img": torch.zeros(3, 4, 5), "more": payload}, tmp_path / "in_dict.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(payload))
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(payload))
    np.save(tmp_path / "object.npy", np.array([payload] * 8, dtype=object).reshape(2, 2, 2), allow_pickle=True)
    for path in sorted(tmp_path.glob("*.*")):
        assert try_read(path) is None
        count("payload in a pickle", "refused")
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())  # it would have worked
    assert trace.exists()


def arrays_that_are_no_volume():
    volume = np.arange(120.0, dtype=np.float32).reshape(4, 5, 6)
    return {
        "object.npy": np.full((3, 4, 5), None, dtype=object),
        "text.npy": np.full((3, 4, 5), "abc"),
        "bytes.npy": np.full((3, 4, 5), b"abc"),
        "dates.npy": np.zeros((3, 4, 5), "datetime64[s]"),
        "records.npy": np.zeros((3, 4, 5), [("a", "f4")]),
        "complex.npy": volume.astype(np.complex64),
        "flat.npy": volume[0],
        "four.npy": np.stack([volume, volume]),
        "empty.npy": volume[:0],
        "thin.npy": volume[:1],
        "list.pt": [torch.zeros(3, 4, 5)],
        "dict.pt": {"a": torch.zeros(3, 4, 5)},
        "complex.pt": torch.zeros(3, 4, 5, dtype=torch.complex64),
        "sparse.pt": torch.zeros(3, 4, 5).to_sparse(),
        "flat.pt": torch.zeros(4, 5),
        "empty.pt": torch.zeros(0, 4, 5),
        "meta.pt": torch.zeros(3, 4, 5, device="meta"),
        "expanded.pt": torch.zeros(1).expand(100_000, 100_000, 1000),
        "state.pt": torch.nn.Linear(3, 3).state_dict(),
    }


@pytest.mark.parametrize("name", arrays_that_are_no_volume())
@pytest.mark.filterwarnings("ignore")
def test_arrays_that_are_no_volume(tmp_path, name):
    array = arrays_that_are_no_volume()[name]
    if name.endswith(".npy"):
        np.save(tmp_path / name, array, allow_pickle=True)
    else:
        torch.save(array, tmp_path / name)
    assert try_read(tmp_path / name) is None
    count("array that is no volume", "refused")


def test_npz_and_wrong_lengths(tmp_path):
    volume = np.arange(120.0, dtype=np.float32).reshape(4, 5, 6)
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, volume)
    np.save(tmp_path / "b.npy", volume)
    data = (tmp_path / "b.npy").read_bytes()
    (tmp_path / "UPPER.NPY").write_bytes(data)
    for name, content in (
        ("c.npy", data + b"\0" * 8),
        ("d.npy", data[:-4]),
        ("e.npy", data.replace(b"(4, 5, 6)", b"(4, 5, 7)")),
        ("f.npy", data.replace(b"(4, 5, 6)", b"(-4, 5,6)")),
        ("g.npy", data.replace(b"(4, 5, 6)", b"(4, 5, x)")),
        ("h.npy", data.replace(b"<f4", b"|O8")),
        ("i.npy", data.replace(b"\x93NUMPY\x01", b"\x93NUMPY\x07")),
    ):
        assert content != data and try_read(make_file(tmp_path / name, content)) is None, name
        count("damaged .npy", "refused")
    assert try_read(tmp_path / "a.npy") is None and count("damaged .npy", "refused")
    for name in ("b.npy", "UPPER.NPY"):
        (scan,) = try_read(tmp_path / name)
        assert np.array_equal(scan.array, volume) and count("damaged .npy", "right")


def test_damaged_tensors(tmp_path):
    volume = torch.arange(2000, dtype=torch.float32).reshape(10, 10, 20)
    torch.save(volume, tmp_path / "good.pt")
    data = (tmp_path / "good.pt").read_bytes()
    voxels = data.index(volume.numpy().tobytes())
    inside = range(voxels, voxels + 8000)
    rng = np.random.default_rng(12)
    for length in rng.integers(0, len(data), 15):
        assert try_read(make_file(tmp_path / "cut.pt", data[:length])) is None and count("truncated .pt", "refused")
    for position in (*rng.integers(0, voxels, 15), *rng.integers(voxels, len(data), 15)):
        scans = try_read(make_file(tmp_path / "a.pt", flip(data, int(position), int(rng.integers(8)))))
        if scans is None:
            count("bit flip in .pt", "refused")
            continue
        changed = int((scans[0].array != volume.numpy()).sum()) if scans[0].array.shape == (10, 10, 20) else -1
        assert changed == 0 or (changed == 1 and position in inside), position
        count("bit flip in .pt", "legal" if changed else "right")


@pytest.fixture
def itk_file(tmp_path):
    SimpleITK = pytest.importorskip("SimpleITK")
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    image = SimpleITK.GetImageFromArray(VOXELS.T.astype(np.int16))
    image.SetSpacing([1.5, 1.25, 4.0])
    image.SetOrigin([-30.0, 40.0, -20.0])
    image.SetDirection([1, 0, 0, 0, -1, 0, 0, 0, 1])

    def make(suffix, compressed):
        SimpleITK.WriteImage(image, str(tmp_path / f"good{suffix}"), compressed)
        return (tmp_path / f"good{suffix}").read_bytes()

    return make


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_damaged_itk_files(tmp_path, itk_file, suffix, compressed):
    data = itk_file(suffix, compressed)
    kind = f"{suffix}{' compressed' if compressed else ''}"
    check(f"damaged {kind}", make_file(tmp_path / f"a{suffix}", data), ["right"])
    rng = np.random.default_rng(13)
    for length in rng.integers(0, len(data) - 1, 10):
        check(f"damaged {kind}", make_file(tmp_path / f"a{suffix}", data[:length]), ["refused"])
    start = data.index(b"\n\n") + 2 if suffix == ".nrrd" else data.index(b"LOCAL\n") + 6
    for position in rng.integers(0, len(data), 25):
        path = make_file(tmp_path / f"a{suffix}", flip(data, int(position), int(rng.integers(8))))
        check(f"damaged {kind}", path, legal=position < start or not compressed)


@pytest.mark.parametrize(
    "old, new",
    [
        (b"sizes: 14 12 6", b"sizes: 14 12 -6"),
        (b"sizes: 14 12 6", b"sizes: 14 12 0"),
        (b"sizes: 14 12 6", b"sizes: 14 12 7"),
        (b"sizes: 14 12 6", b"sizes: 1000000 1000000 6"),
        (b"type: short", b"type: float"),
        (b"type: short", b"type: block"),
        (b"(1.5,0,0)", b"(0,0,0)"),
        (b"(1.5,0,0)", b"(nan,0,0)"),
        (b"(1.5,0,0)", b"(0,1.25,0)"),
        (b"(1.5,0,0)", b"(1e30,0,0)"),
        (b"dimension: 3", b"dimension: 2"),
        (b"dimension: 3", b"dimension: 99"),
        (b"encoding: raw", b"encoding: gzip"),
        (b"endian: little", b"endian: none"),
    ],
)
def test_nonsense_in_nrrd_header(tmp_path, itk_file, old, new):
    data = itk_file(".nrrd", False)
    assert old in data
    check(".nrrd header values", make_file(tmp_path / "a.nrrd", data.replace(old, new)), ["refused"])


@pytest.mark.parametrize(
    "suffix, lost", [(".nrrd", rb"space: [^\n]*\n"), (".mha", rb"(TransformMatrix|AnatomicalOrientation) = [^\n]*\n")]
)
def test_itk_files_without_orientation_say_so(tmp_path, itk_file, suffix, lost):
    data = re.sub(lost, b"", itk_file(suffix, False))
    if suffix == ".nrrd":
        data = re.sub(rb"space directions: [^\n]*\n", b"spacings: 1.5 1.25 4\n", data)
        data = re.sub(rb"space origin: [^\n]*\n", b"", data)
    (scan,) = try_read(make_file(tmp_path / f"a{suffix}", data))
    assert "orientation-unknown" in scan.notes and np.allclose(scan.spacing, [4, 1.25, 1.5])


# Small files that inflate, and headers that promise: memory is measured in a process of its own.

_BOMBS = """
import json, resource, sys, time
from itemized_clip_hf.data.readers.read import read_file
import pydicom, nibabel, numpy.lib.format
try:
    import SimpleITK
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
except ImportError:
    pass
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for path in sys.argv[1:]:
    before, start = peak(), time.time()
    try:
        read_file(path)
        outcome = "read"
    except (ValueError, OSError) as error:
        outcome = "refused: " + str(error)
    print(json.dumps([path, outcome, peak() - before, time.time() - start]), flush=True)
"""


def zeros_gzipped(gigabytes: int, start: bytes) -> bytes:
    """Members of 64 MiB of zeros one after the other: gzip files may be joined."""
    return gzip.compress(start) + gzip.compress(bytes(1 << 26)) * (16 * gigabytes)


def zip_of_zeros(start: bytes) -> bytes:
    """A zip of one file of 3 GiB, put together by hand; its checksum is at its end, where nobody should come."""
    deflate = zlib.compressobj(9, wbits=-15)
    data = deflate.compress(start) + deflate.flush(zlib.Z_FULL_FLUSH)
    data += (deflate.compress(bytes(1 << 26)) + deflate.flush(zlib.Z_FULL_FLUSH)) * 48 + deflate.flush()
    sizes = struct.pack("<HHIIIHH", 8, 0, 0, len(data), len(start) + (48 << 26), 5, 0)
    local = b"PK\x03\x04\x14\0\0\0" + sizes[:2] + b"\0\0" + sizes[2:] + b"a.dcm"
    central = b"PK\x01\x02\x14\0\x14\0\0\0" + sizes[:2] + b"\0\0" + sizes[2:] + bytes(14) + b"a.dcm"
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    return local + data + central + end


def make_bombs(folder: Path) -> list[Path]:
    good = nifti_bytes()
    huge = put(good, 42, "3h", 1200, 1200, 700)  # 2 GB, within the limit
    series = series_bytes(1)[0]
    grown = put(series, series.index(b"\xe0\x7f\x10\x00OW") + 8, "I", 0xFFFFFFF0)
    deflated = series.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    files = {
        "tail.nii.gz": zeros_gzipped(3, good),
        "promise.nii.gz": gzip.compress(huge),
        "promise.nii": huge,
        "beyond.nii.gz": gzip.compress(put(good, 42, "3h", 32000, 32000, 32000)),
        "promise.dcm": grown,
        "rows.dcm": put(
            put(series, series.index(b"\x28\0\x10\0US") + 8, "H", 8000), series.index(b"\x28\0\x11\0US") + 8, "H", 8000
        ),
        "deflated.dcm": deflated,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    members = {
        "zeros.zip": bytes(128) + b"DICM",
        "header.zip": series[: series.index(b"\x28\0\x02\0US")],
        "pixels.zip": grown,
    }
    for name, start in members.items():
        (folder / name).write_bytes(zip_of_zeros(start))
    save(make_series(make_grid(slices=3, size=(40, 48))), folder / "wide", JPEG2000Lossless)
    for file in (folder / "wide").iterdir():
        data = file.read_bytes()
        size = data.index(b"\xff\x4f\xff\x51") + 8
        file.write_bytes(data[:size] + struct.pack(">6I", 40000, 40000, 0, 0, 40000, 40000) + data[size + 24 :])
    zip_folder(folder / "wide", folder / "wide_codestream.zip")
    with zipfile.ZipFile(folder / "nested.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "zeros.zip", "inner.zip")
    torch.save(torch.zeros(1, dtype=torch.uint8).expand(60_000, 60_000, 60), folder / "expanded.pt")
    torch.save(torch.zeros(2, 2, 2), folder / "small.pt")
    with zipfile.ZipFile(folder / "small.pt") as small, zipfile.ZipFile(folder / "inflates.pt", "w", 8) as archive:
        for member in small.infolist():
            data = bytes(1 << 27) if member.filename.endswith("data/0") else small.read(member)
            archive.writestr(member.filename, data)
            for copy in range(17 * member.filename.endswith("data/0")):
                archive.writestr(f"{member.filename}{copy + 1}", data)
    (folder / "small.pt").unlink()
    with (folder / "promise.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1000, 1000, 500)})
    with (folder / "beyond.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6, 10**6)}
        )
    nrrd = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nencoding: {}\nendian: little\n\n"
    (folder / "promise.nrrd").write_bytes(nrrd.format("30000 30000 30000", "raw").encode() + bytes(100))
    (folder / "tail.nrrd").write_bytes(nrrd.format("14 12 6", "gzip").encode() + zeros_gzipped(1, bytes(100)))
    mha = "ObjectType = Image\nNDims = 3\nDimSize = 9000 9000 9000\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (folder / "promise.mha").write_bytes(mha.encode() + bytes(100))
    return sorted(file for file in folder.iterdir() if file.is_file())


def test_bombs_take_little_memory_and_time(tmp_path):
    """600 MB above what the process takes anyway; all of them would inflate to gigabytes."""
    (tmp_path / "bombs").mkdir()
    bombs = make_bombs(tmp_path / "bombs")
    assert len(bombs) >= 15 and max(file.stat().st_size for file in bombs) < 8 << 20
    root = str(Path(__file__).parents[3])
    ran = subprocess.run(
        [sys.executable, "-c", _BOMBS, *map(str, bombs)],
        capture_output=True, text=True, timeout=55, env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(bombs)
    for path, outcome, megabytes, seconds in lines:
        assert outcome.startswith("refused") and megabytes < 600 and seconds < 10, (path, outcome, megabytes, seconds)
        count("bomb", "refused")


def test_every_group_was_counted(record_property, request):
    """The table of outcomes; only where the whole file ran."""
    table: dict[str, Counter] = {}
    for (group, outcome), number in OUTCOMES.items():
        table.setdefault(group, Counter())[outcome] += number
    for group, outcomes in table.items():
        record_property(group, dict(outcomes))
        print(f"{group:32s} {sum(outcomes.values()):4d}  {dict(outcomes)}")
    if len(table) < 25:
        pytest.skip("needs the other tests of this file in the same process")
    total = Counter()
    for outcomes in table.values():
        total.update(outcomes)
    print(f"{'all':32s} {sum(total.values()):4d}  {dict(total)}")
    assert sum(total.values()) >= 300 and total["refused"] > total["legal"]
