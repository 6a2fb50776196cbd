"""What identifies a patient, and tokens, planted in headers and in the environment: no output holds any of it."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import ITEMS

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")
TOKEN = "hf_PlantedTokenXyzzy0123456789abcdef"
SECRETS = [f"Xyzzy{n:02d}Q" for n in range(30)]


def plant_nifti(folder: Path, secrets) -> None:
    folder.mkdir(parents=True)
    image = nibabel.Nifti1Image(
        np.random.default_rng(0).normal(100, 30, (40, 48, 24)).astype(np.float32), np.diag([-5.0, 5, 6, 1])
    )
    image.header["descrip"], image.header["aux_file"] = next(secrets), next(secrets)
    image.header["db_name"], image.header["intent_name"] = next(secrets), next(secrets)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", next(secrets).encode()))
    nibabel.save(image, folder / "AX_T1.nii.gz")
    (folder / "AX_T2.nii.gz").write_bytes(gzip.compress(next(secrets).encode() * 99))
    (folder / "AX_FLAIR.nrrd").write_bytes(
        b"NRRD0004\ntype: float\ndimension: 3\nsizes: 4 4 4\nencoding: raw\n"
        + f"content: {next(secrets)}\npatient:={next(secrets)}\n\n".encode()
    )
    (folder / "AX_DWI.mha").write_text(f"ObjectType = Image\nNDims = 3\nPatientName = {next(secrets)}\nDimSize = 4 4\n")


def plant_dicom(folder: Path, secrets) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True)
    fields = ("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber", "InstitutionName", "ReferringPhysicianName",
              "StudyDescription", "PatientComments", "StudyID", "DeviceSerialNumber", "OperatorsName")  # fmt: skip
    planted = {field: next(secrets)[:16] for field in fields}
    private, series = next(secrets), generate_uid()
    for number in range(12):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset("x", {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = (
            MRImageStorage,
            meta.MediaStorageSOPInstanceUID,
            series,
        )
        data.StudyInstanceUID, data.Modality, data.SeriesDescription = "1.2.3", "MR", "AX T1"
        data.Rows = data.Columns = 32
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
        data.PhotometricInterpretation, data.PixelSpacing, data.SliceThickness = "MONOCHROME2", [6, 6], 12
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 12.0 * number]
        data.InstanceNumber = number
        for field, value in planted.items():
            setattr(data, field, value)
        data.private_block(0x0029, "VENDOR", create=True).add_new(1, "LO", private)
        data.PixelData = np.random.default_rng(number).integers(0, 900, (32, 32), dtype=np.uint16).tobytes()
        if number == 11:
            data.PixelData = data.PixelData[:100]
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def everything(folder: Path) -> bytes:
    """All that was written, names included, and compressed files both ways."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(str(path.relative_to(folder)).encode())
        if path.is_file():
            found.append(path.read_bytes())
            if path.name.endswith(".gz"):
                found.append(gzip.decompress(path.read_bytes()))
    return b"\n".join(found)


@pytest.mark.slow
def test_nothing_planted_comes_out(model_folder, tmp_path):
    secrets = iter(SECRETS)
    plant_nifti(tmp_path / "in" / "s1", secrets)
    plant_dicom(tmp_path / "in" / "s2" / "series", secrets)
    used = SECRETS[: len(SECRETS) - len(list(secrets))]
    assert len(used) >= 20
    (tmp_path / "reports.jsonl").write_text(
        "".join(json.dumps({"id": f"s{n}", "items": ITEMS[:1]}) + "\n" for n in (1, 2))
    )
    (tmp_path / "list.jsonl").write_text(
        "".join(json.dumps({"id": f"s{n}", "images": f"in/s{n}", "items": ITEMS[:1]}) + "\n" for n in (1, 2))
    )
    out = tmp_path / "out"
    out.mkdir()
    common = ["-i", str(tmp_path / "in"), "-m", str(model_folder), "-p", ITEMS[0]]
    verbs = [
        ["inspect", "-i", str(tmp_path / "in"), "--domain", "brain-mri"],
        ["predict", *common, "-o", str(out / "o.csv"), "--json"],
        ["explain", *common, "-o", str(out / "maps")],
        ["prepare", "-i", str(tmp_path / "in"), "--reports", str(tmp_path / "reports.jsonl"), "--domain", "brain-mri",
         "-o", str(out / "set"), "--workers", "1"],
        ["evaluate", "--protocol", "items", "-i", str(tmp_path / "list.jsonl"), "-m", str(model_folder),
         "-o", str(out / "e.json")],
    ]  # fmt: skip
    environment = {**os.environ, "HF_TOKEN": TOKEN, "HF_HOME": str(out / "cache"), "TMPDIR": str(out)}
    said = b""
    for arguments in verbs:
        done = subprocess.run(
            [sys.executable, "-m", "itemized_clip_cli", *arguments], env=environment, capture_output=True
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode()
        said += done.stdout + done.stderr
    written = everything(out)
    assert (
        (out / "o.csv").exists() and (out / "set" / "summary.html").exists() and list((out / "maps").rglob("*.nii.gz"))
    )
    for secret in [*used, TOKEN]:
        assert secret.encode() not in said, secret
        assert secret.encode() not in written, secret
