"""Synthetic DICOM series of a known world: what each voxel should hold follows from where its header says that it lies."""

import io
import zipfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
)

LPS = np.diag([-1.0, -1.0, 1.0])
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "feet-first": (-1, 0, 0, 0, 1, 0),
    "oblique": (0.96, 0.28, 0, -0.28 * 0.8, 0.96 * 0.8, -0.6),
}
# Nothing of these may leave the reader.
PATIENT = {
    "PatientName": "Mustermann^Erika",
    "PatientID": "QX7731Z",
    "PatientBirthDate": "19520417",
    "AccessionNumber": "ACC-99182",
    "ReferringPhysicianName": "Quacksalver^Ottokar",
    "InstitutionName": "Klinikum Hinterwald",
    "StudyDate": "20190823",
    "StudyID": "ST4711",
    "StationName": "STATION77",
}
SECRETS = (
    *("mustermann", "erika", "qx7731z", "19520417", "99182", "quacksalver", "ottokar", "klinikum", "hinterwald"),
    *("20190823", "st4711", "station77", "1952-04-17", "23.08.2019", "2019-08-23", "2019_08_23", "23aug2019"),
)


_UIDS = count(1)
STUDY_UID = "1.2.826.0.1.3680043.8.498.2000000000001"


def make_uid() -> str:
    """Another one each time, all of one length, so that seeded damage meets the same fields in every run."""
    return f"1.2.826.0.1.3680043.8.498.1{next(_UIDS):012d}"


def world(points: np.ndarray) -> np.ndarray:
    """HU at points (..., 3) in RAS mm: smooth, without any symmetry, -160 to 240."""
    x, y, z = np.moveaxis(np.asarray(points, float), -1, 0)
    return 40 + 80 * np.sin(x / 21 + 0.3) + 70 * np.sin(y / 27 + z / 60) + 50 * np.sin(z / 33 - 0.7)


def mr_world(points: np.ndarray) -> np.ndarray:
    """Intensities of an MR series: 100 to 900."""
    return 500 + 2 * (world(points) - 40)


def truth(scan, function=world) -> np.ndarray:
    """What the world holds at each voxel of a scan, by its affine."""
    indices = np.stack(np.meshgrid(*map(np.arange, scan.array.shape), indexing="ij"), -1)
    return function(indices @ scan.affine[:3, :3].T + scan.affine[:3, 3])


@dataclass
class Grid:
    """Slices of a series in LPS mm: `positions` (slices, 3) of their first voxels."""

    positions: np.ndarray
    orientation: np.ndarray
    spacing: tuple[float, float]
    size: tuple[int, int]

    def points(self, number: int) -> np.ndarray:
        """(rows, columns, 3) in RAS mm."""
        i, j = np.meshgrid(*map(np.arange, self.size), indexing="ij")
        along_rows, along_columns = self.orientation[:3], self.orientation[3:]
        lps = self.positions[number] + i[..., None] * self.spacing[0] * along_columns
        return (lps + j[..., None] * self.spacing[1] * along_rows) @ LPS


def make_grid(orientation="axial", slices=12, size=(20, 24), spacing=(1.5, 1.25), distance=4.0, heights=None, tilt=0.0):
    """
    Args:
        orientation: name of `ORIENTATIONS`, or six direction cosines.
        heights: mm of each slice along the normal; `slices` at `distance` without it.
        tilt: degrees between the line of the slices and their normal, as a gantry has it.
    """
    cosines = np.array(
        ORIENTATIONS.get(orientation, orientation) if isinstance(orientation, str) else orientation, float
    )
    normal = np.cross(cosines[:3], cosines[3:])
    heights = np.arange(slices) * distance if heights is None else np.asarray(heights, float)
    line = normal + np.tan(np.radians(tilt)) * cosines[3:]
    first = np.array([-13.0, -17.0, 31.0])
    return Grid(first + heights[:, None] * line, cosines, tuple(spacing), tuple(size))


def make_series(grid: Grid, modality="CT", slope=1.0, intercept=-1024.0, function=None, signed=False, **fields) -> list:
    """One classic data set a slice; `fields` are set on all of them, None deletes."""
    function = function or (world if modality == "CT" else mr_world)
    if modality == "MR":
        slope, intercept = None, None
    series = make_uid()
    made = []
    for number in range(len(grid.positions)):
        one = _base(modality, CTImageStorage if modality == "CT" else MRImageStorage, series)
        one.InstanceNumber = number + 1
        one.ImagePositionPatient = _decimal(grid.positions[number])
        one.ImageOrientationPatient = _decimal(grid.orientation)
        one.PixelSpacing = _decimal(grid.spacing)
        values = function(grid.points(number))
        if slope is not None:
            one.RescaleSlope, one.RescaleIntercept = str(slope), str(intercept)
            values = (values - intercept) / slope
        set_pixels(one, np.rint(values).astype(np.int16 if signed else np.uint16))
        set_fields(one, fields)
        made.append(one)
    return made


def make_enhanced(grid: Grid, modality="CT", shared=("orientation", "measures", "rescale"), order=None, **fields):
    """One multi-frame data set; groups named in `shared` stand there, the others in each frame."""
    enhanced = _base(
        modality, EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage, make_uid(), "VOLUME"
    )
    function = world if modality == "CT" else mr_world
    groups = {
        "orientation": ("PlaneOrientationSequence", {"ImageOrientationPatient": _decimal(grid.orientation)}),
        "measures": ("PixelMeasuresSequence", {"PixelSpacing": _decimal(grid.spacing), "SliceThickness": "4"}),
        "rescale": (
            "PixelValueTransformationSequence",
            {"RescaleSlope": "0.5", "RescaleIntercept": "-1024", "RescaleType": "HU"},
        ),
    }
    order = list(range(len(grid.positions))) if order is None else order
    frames, planes = [], []
    for number in order:
        frame = Dataset()
        _add_group(frame, "PlanePositionSequence", {"ImagePositionPatient": _decimal(grid.positions[number])})
        _add_group(frame, "FrameContentSequence", {"StackID": "1", "InStackPositionNumber": int(number) + 1})
        for kind, group in groups.items():
            if kind not in shared:
                _add_group(frame, *group)
        frames.append(frame)
        planes.append(np.rint((function(grid.points(number)) + 1024) / 0.5).astype(np.uint16))
    common = Dataset()
    for kind in shared:
        _add_group(common, *groups[kind])
    enhanced.SharedFunctionalGroupsSequence = Sequence([common])
    enhanced.PerFrameFunctionalGroupsSequence = Sequence(frames)
    enhanced.NumberOfFrames = len(frames)
    set_pixels(enhanced, np.stack(planes))
    set_fields(enhanced, fields)
    return enhanced


def _add_group(dataset: Dataset, name: str, values: dict) -> None:
    item = Dataset()
    set_fields(item, values)
    setattr(dataset, name, Sequence([item]))


def _base(modality: str, sop_class, series: str, kind: str = "") -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = make_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    one.SeriesInstanceUID, one.StudyInstanceUID = series, STUDY_UID
    one.Modality = modality
    one.SeriesNumber = 3
    one.SeriesDescription = "AX HEAD" if modality == "CT" else "AX T1"
    one.ImageType = ["ORIGINAL", "PRIMARY", kind or ("AXIAL" if modality == "CT" else "M")]
    set_fields(one, PATIENT)
    return one


def set_pixels(dataset: Dataset, pixels: np.ndarray, photometric="MONOCHROME2") -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"


def set_fields(dataset: Dataset, fields: dict) -> None:
    for name, value in fields.items():
        if value is None:
            if name in dataset:
                delattr(dataset, name)
        else:
            setattr(dataset, name, value)


def _decimal(values) -> list[str]:
    """Decimal strings of at most 16 characters, as the standard has them."""
    return [f"{value:.10f}"[:16] for value in values]


def save(datasets, folder: Path, syntax=None, name="{:04d}.dcm", start=0) -> Path:
    """Writes data sets as files of a folder, in a shuffled order of names; `syntax` re-encodes them."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(len(datasets)).permutation(len(datasets))
    for number, one in zip(order, datasets):
        write(one, folder / name.format(start + number), syntax)
    return folder


def write(dataset, path: Path, syntax=None) -> Path:
    dataset = pydicom.dcmread(_bytes_of(dataset))
    if syntax is not None and syntax.is_compressed and not syntax.is_deflated:
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path, enforce_file_format=True)
    elif syntax is not None and not syntax.is_little_endian:
        width = np.dtype(f"u{dataset.BitsAllocated // 8}")
        dataset.PixelData = np.frombuffer(dataset.PixelData, width).byteswap().tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.decode()
        for element in dataset.iterall():
            element.value  # noqa: B018 - parsed before the encoding changes
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
    else:
        if syntax is not None:
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset = _without_encoding(dataset)
        dataset.save_as(path, enforce_file_format=True)
    return path


def _bytes_of(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    stream.seek(0)
    return stream


def _without_encoding(dataset) -> FileDataset:
    """A copy that is written in whatever encoding its transfer syntax states."""
    copy = FileDataset("", {}, file_meta=dataset.file_meta, preamble=b"\0" * 128)
    for element in dataset:
        copy.add(element)
    return copy


def zip_folder(folder: Path, path: Path, prefix="", compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(folder)))
    return path
