"""One picture of a result: scores, shares and places of findings, and that they are those of the other ways."""

import csv
import io

import numpy as np
import pytest
import torch
from oblique import make_oblique
from tiny_models import ITEMS

from itemized_clip_hf.data.study import Scan
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.explain.encoded import encode_study, explain_encoded, explain_result
from itemized_clip_hf.explain.maps import explain_items
from itemized_clip_hf.explain.result import COLUMNS, strongest_voxel


@pytest.fixture
def study():
    generator = np.random.default_rng(1)
    return {
        "AX_T1": Scan(generator.normal(100, 30, (10, 20, 24)).astype(np.float32), make_oblique()),
        "AX_T2": Scan(
            generator.normal(100, 30, (14, 26, 18)).astype(np.float32), make_oblique((4.0, 1.5, 1.5), (0.0, 3.0, 5.0))
        ),
    }


def test_scores_and_maps_are_those_of_predict_and_explain(make_model, processor, study):
    model = make_model()
    for quantity in ("similarity", "logit"):
        result = explain_result(model, processor, study, ITEMS[:3], "one", quantity)
        for number, maps in enumerate(
            explain_items(model, processor, study, ITEMS[:3], scores=quantity, attribution="contribution")
        ):
            own = result.heat_maps(number)
            assert [heat.scan_name for heat in own] == result.scan_names == ["AX_T1", "AX_T2"]
            for mine, theirs in zip(own, maps):
                np.testing.assert_array_equal(mine.values, theirs.values)
                assert (mine.share, mine.similarity, mine.quantity) == (theirs.share, theirs.similarity, quantity)
                assert mine.score == pytest.approx(theirs.score, abs=1e-6)
    averaged = {"a": ITEMS[:2], "b": ITEMS[2]}
    _, expected = score_studies(model, processor, [study], averaged)
    found = explain_result(model, processor, study, averaged)
    np.testing.assert_allclose([one.score for one in found.findings], expected[0], atol=1e-6)
    assert [one.prompts for one in found.findings] == [tuple(ITEMS[:2]), (ITEMS[2],)]


def test_new_findings_do_not_pass_through_the_vision_tower(make_model, processor, study, monkeypatch):
    model = make_model()
    encoded = encode_study(model, processor, study)
    expected = explain_result(model, processor, study, ITEMS[1:3])
    monkeypatch.setattr(model, "encode_images", lambda *_, **__: pytest.fail("the study was encoded again"))
    again = explain_encoded(model, processor, encoded, ITEMS[1:3])
    assert [one.score for one in again.findings] == [one.score for one in expected.findings]
    with pytest.raises(ValueError, match="no findings"):
        explain_encoded(model, processor, encoded, [])
    assert [one.label for one in explain_encoded(model, processor, encoded, [ITEMS[0]] * 2).findings] == [ITEMS[0]] * 2


def test_the_peak_is_the_maximum_of_the_map(make_model, processor, study):
    result = explain_result(make_model(3), processor, study, ITEMS[:3])
    for number in range(3):
        for n, heat in enumerate(result.heat_maps(number)):
            place = np.linalg.inv(heat.affine) @ [*result.peak(number, n), 1.0]
            value = heat.values[tuple(place[:3].round().astype(int))]
            assert value == pytest.approx(heat.values.max(), rel=1e-4)


def test_the_strongest_voxel_of_a_known_map():
    tokens = np.zeros((2, 4, 4), np.float32)
    tokens[1, 2, 1] = 5
    steps = np.diag([1 / 5, 1 / 3, 1 / 7, 1.0])  # voxels are finer: 5, 3 and 7 to a token
    steps[:3, 3] = [-0.4, -1 / 3, -3 / 7]
    tokens[1, 2, 2] = 4  # pulls no voxel from the center of its neighbor
    assert strongest_voxel(tokens, steps, (10, 12, 28)).tolist() == [7, 7, 10]


def test_as_json_and_csv(make_model, processor, study):
    result = explain_result(
        make_model(), processor, study, {"left, <b>": ITEMS[0]}, "a", about={"model": {"name": "m"}}
    )
    told = result.to_dict()
    assert told["calibrated"] is False and told["model"] == {"name": "m"}
    (finding,) = told["findings"]
    assert sum(scan["share"] for scan in finding["scans"]) == pytest.approx(1, abs=1e-5)
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert tuple(rows[0]) == COLUMNS and [row["scan"] for row in rows] == ["AX_T1", "AX_T2"]
    assert float(rows[0]["score"]) == result.findings[0].score and rows[0]["finding"] == "left, <b>"
    np.testing.assert_allclose([float(rows[1][f"peak_{axis}_mm"]) for axis in "xyz"], result.peak(0, 1), atol=1e-3)


def test_what_the_checks_said_of_files_is_kept(make_model, processor, write_volume):
    path = write_volume("AX_T1.nii.gz", affine=np.diag([-2.0, -2.0, 6.0, 1.0]))
    result = explain_result(make_model(), processor, {"AX_T1": str(path)}, ITEMS[:1])
    assert [report.verdict for report in result.reports] == ["ok"] or result.reports[0].problems


def test_pictures(tokenizer):
    from itemized_clip_hf.models.load import load

    model, processor = load("tests/fixtures/d913de0/remote-sensing", device="cpu")
    picture = torch.randint(0, 255, (3, 40, 52), dtype=torch.uint8).numpy()
    result = explain_result(model, processor, picture, ["a river"])
    assert result.is_picture and result.scan_names == ["picture"] and result.affine(0) is None
    assert result.pixels(0).shape[-1] == 3 and result.pixels(0).dtype == np.uint8
    seen = processor.image_processor.process_study(picture)[0]
    back = (result.pixels(0)[..., 0] / 255 - result.mean[0]) / result.std[0]
    np.testing.assert_allclose(back, seen.pixel_values[0, 0], atol=0.01)


def test_a_finding_that_nothing_speaks_for_has_no_place(make_model, processor, study):
    result = explain_result(make_model(), processor, study, ITEMS[:2])
    result.findings[1].attention[:], result.findings[1].shares[:] = 0, 0
    assert result.peak(1, 0) is None and result.peak(0, 0) is not None
    assert [scan["peak"] for scan in result.to_dict()["findings"][1]["scans"]] == [None, None]
    rows = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert {row["peak_x_mm"] for row in rows if row["finding"] == ITEMS[1]} == {""}
