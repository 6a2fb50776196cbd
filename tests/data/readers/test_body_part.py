"""A chest given to a model of heads, and the other way round, is noticed, from the command line and in Python."""

import numpy as np
import pytest

from itemized_clip_hf.data import open as opening
from itemized_clip_hf.data.checks import body_part_problem, check_scan
from itemized_clip_hf.data.open import Warnings, require_usable
from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.domains import load_domain


def ct(lung: bool, spacing=(5.0, 4.0, 4.0)) -> Scan:
    """A body of water in air, with two lungs of 1.2 liters each, or none."""
    array = np.full((60, 80, 80), -1000, np.float32)
    array[:, 20:60, 10:70] = 20
    if lung:
        for left in (15, 45):
            array[10:50, 28:46, left : left + 20] = -820
    array += np.random.default_rng(0).normal(0, 12, array.shape).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[:3, :3] = np.array([[0, 0, -spacing[2]], [0, -spacing[1], 0], [spacing[0], 0, 0]])
    affine[3, 3] = 1
    return Scan(array, affine, "series", modality="CT")


@pytest.mark.parametrize(
    ("lung", "domain", "warned"), [(1, "head-ct", 1), (0, "head-ct", 0), (1, "chest-ct", 0), (0, "chest-ct", 1)]
)
def test_generated(lung, domain, warned):
    scan = ct(bool(lung))
    codes = [problem.code for problem in check_scan(scan, domain).problems]
    assert ("body-part" in codes) == bool(warned)
    said: list[str] = []
    require_usable(scan, domain, warn=Warnings(said.append))
    assert sum("[body-part]" in line for line in said) == warned


def test_real_scans(data_folder):
    from itemized_clip_hf.data.readers.read import read_file

    head = read_file(str(data_folder / "volumes" / "ct_head_ge" / "ct_hu.nii.gz"))
    chest = read_file(str(data_folder / "volumes" / "ct_chest_qin" / "ct_hu.nii.gz"))
    assert (
        body_part_problem(chest, load_domain("chest-ct")) is None
        and body_part_problem(head, load_domain("head-ct")) is None
    )
    assert "looks like a chest: 3.7 liters" in body_part_problem(chest, load_domain("head-ct"))[0]
    assert "no chest is seen" in body_part_problem(head, load_domain("chest-ct"))[0]


def test_the_processor_warns(write_volume, tokenizer, caplog):
    from itemized_clip_hf import ItemizedCLIPProcessor

    scan = ct(True)
    path = write_volume("ct.nii.gz", scan.array.T, affine=np.diag([4.0, 4.0, 5.0, 1.0]))
    processor = ItemizedCLIPProcessor.from_domain("head-ct", tokenizer, scan_size=[8, 32, 32], in_plane_size=32)
    opening._log.counts.clear()  # each kind of warning is given a few times only
    with caplog.at_level("WARNING"):
        processor(images=[[str(path)]], return_tensors="pt")
    assert "looks like a chest" in caplog.text
