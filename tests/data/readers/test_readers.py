"""A format is added by one file, and nothing heavy is imported to know which files there are."""

import subprocess
import sys

import numpy as np
import pytest

from itemized_clip_hf.data import readers
from itemized_clip_hf.data.kinds import is_volume, study_name, volume_suffixes
from itemized_clip_hf.data.readers.read import read_file

READER = '''
"""Volumes as text: a first line of three sizes, then numbers."""

import numpy as np

from itemized_clip_hf.data.study import Scan

SUFFIXES = (".voxels.txt",)


def read(path, volume_index=None):
    sizes, _, numbers = path.read_text().partition("\\n")
    array = np.array(numbers.split(), dtype=np.float32).reshape([int(size) for size in sizes.split()])
    return Scan(array, np.eye(4), path.name.removesuffix(".voxels.txt"), str(path))
'''


@pytest.fixture
def one_more_reader(tmp_path, monkeypatch):
    """A reader's file in the folder of readers, for the time of a test."""
    (tmp_path / "readers").mkdir()
    (tmp_path / "readers" / "voxel_text.py").write_text(READER)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path / "readers")])
    readers.readers_by_suffix.cache_clear()
    yield
    readers.readers_by_suffix.cache_clear()
    sys.modules.pop("itemized_clip_hf.data.readers.voxel_text", None)


def test_a_reader_is_found_by_its_file(one_more_reader, tmp_path):
    values = np.random.default_rng(0).normal(100, 30, (4, 5, 6)).astype(np.float32)
    for name in ("AX_T1", "AX_T2"):
        text = "4 5 6\n" + " ".join(map(repr, values.ravel().tolist()))
        (tmp_path / "study").mkdir(exist_ok=True)
        (tmp_path / "study" / f"{name}.voxels.txt").write_text(text)
    file = tmp_path / "study" / "AX_T1.voxels.txt"
    assert volume_suffixes()[-1] == ".voxels.txt" and is_volume(file) and study_name(file) == "AX_T1"
    np.testing.assert_array_equal(read_file(file).array, values)
    study = read_file(tmp_path / "study")  # a folder of its files, as of any other kind
    assert list(study.scans) == ["AX_T1", "AX_T2"]
    with pytest.raises(ValueError, match=r"not a known kind of image file; known: .*\.voxels\.txt"):
        other = tmp_path / "notes.md"
        other.write_text("")
        read_file(other)


def test_without_its_file_the_kind_is_unknown(tmp_path):
    (tmp_path / "a.voxels.txt").write_text("2 2 2\n1 2 3 4 5 6 7 8")
    assert ".voxels.txt" not in volume_suffixes()
    with pytest.raises(ValueError, match="not a known kind"):
        read_file(tmp_path / "a.voxels.txt")


def test_ids_of_files_with_two_suffixes_stay():
    """The order in which suffixes are taken off a name decides what a study is called."""
    assert volume_suffixes() == (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".pt", ".npy", ".npz", ".dcm", ".zip")
    assert [study_name(name) for name in ("a.nii.gz", "a.nii.nrrd", "a.nii.zip", "a.nrrd.nii", "a.dcm.zip")] == [
        "a",
        "a.nii",
        "a.nii",
        "a",
        "a.dcm",
    ]


def test_readers_are_known_without_their_libraries():
    script = """
import sys
from itemized_clip_hf.data.readers import readers_by_suffix
assert len(readers_by_suffix()) == 10
heavy = {"torch", "transformers", "nibabel", "pydicom", "SimpleITK"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
