"""Typed results give the JSON that files hold, and read it."""

import json
import math

import pytest

from itemized_clip_hf.evaluation.estimates import MIN_STUDIES, Estimate, column_title
from itemized_clip_hf.evaluation.results import Measured, ProtocolResult, TaskResult, measured_figures, read_result

AUC = {"value": 0.832, "low": 0.81, "high": 0.851}
FINDINGS = {
    "studies": 40,
    "findings": {
        "mass": {
            "positive": 20,
            "negative": 17,
            "unknown": 3,
            "prompt": "a mass",
            "auc": AUC,
            "average_precision": AUC,
            "threshold": 0.25,
            "accuracy": AUC,
        },
        "bleed": {"positive": 0, "negative": 40},
        "flat": {"positive": 2, "negative": 38, "auc": AUC, "threshold": None},
    },
    "mean": {"auc": AUC},
    "left_out": {"in none of the lists": 2},
}
CHOICE = {
    "studies": 40,
    "tasks": {"kind": {"studies": 30, "classes": {"a": 10, "b": 20}, "balanced_accuracy": AUC}},
    "mean": {"balanced_accuracy": AUC},
    "left_out": {},
}
RANKING = {"studies": 40, "mean": {"top1": AUC, "mean_rank": {"value": 1.5}}, "left_out": {}}
BASIS = {"model": {"name": "m", "sha256": "0"}, "data": {"studies": 40, "sha256": "1"}, "versions": {"torch": None}}
PROTOCOL = {
    "protocol": "own",
    "title": "Own",
    "quantity": "similarity",
    "headline": {"name": "mean auc over a, b, c", "value": 0.832},
    "tables": {"a": FINDINGS, "b": CHOICE, "c": RANKING},
    "missing": ["s1"],
    "unreadable": [{"id": "s2", "reason": "damaged"}],
    "notes": ["a note"],
    **BASIS,
}
TASK = {
    "protocol": "items",
    "quantity": "similarity",
    "studies": 20,
    "texts": 9,
    "figures": {"MLL": {"value": 12.5, "low": 12.0, "high": 13.0}, "I2T@1": {"value": 0.5}},
    "series": {"all": {"T1": 1.0}},
    "unreadable": [],
    **BASIS,
}
GROUPED = {
    "protocol": "retrieval",
    "images": 500,
    "figures": {"text_to_image": {"R@1": AUC}, "image_to_text": {"R@1": AUC}},
    **BASIS,
}


@pytest.mark.parametrize("content", [PROTOCOL, TASK, GROUPED])
def test_files_are_read_and_written_the_same_to_the_byte(content):
    assert json.dumps(read_result(content).to_dict()) == json.dumps(content)


def test_null_is_not_a_value():
    estimate = Estimate.from_dict({"value": None}, "auc")
    assert math.isnan(estimate.value) and not estimate.is_known and estimate.format() == "-"
    content = {**TASK, "figures": {"mAMS": {"value": None}, "MLL": {"value": 1.0}}}
    assert [row.metric for row in measured_figures(read_result(content))] == ["MLL"]


def test_shares_are_shown_in_percent_and_ranks_are_not():
    assert Estimate.from_dict(AUC, "auc", 40).format() == "83.2 (81.0-85.1)"
    assert Estimate.from_dict(AUC, "mean auc").format(" to ") == "83.2 (81.0 to 85.1)"
    assert Estimate(1.5, unit="rank").format() == "1.50"
    for metric in ("mean_rank", "median_rank", "worst_rank", "MLL", "mean rank"):
        assert Estimate.from_dict({"value": 1.5}, metric).format() == "1.50" and column_title(metric) == metric
    assert column_title("R@1") == "R@1 (%)"


def test_few_studies_have_no_interval_to_show_but_keep_it_in_the_file():
    certain = {"value": 1.0, "low": 1.0, "high": 1.0}
    assert Estimate.from_dict(certain, "auc", MIN_STUDIES - 1).format() == "100.0 (too few studies)"
    assert Estimate.from_dict(certain, "auc", MIN_STUDIES).format() == "100.0 (100.0-100.0)"
    assert Estimate.from_dict(certain, "auc", 2).to_dict() == certain


def test_what_is_not_a_result_is_refused():
    for content in ({}, {"protocol": "x", "tables": {"": {}}}, {"protocol": "x", "tables": []}, {"figures": 3}):
        with pytest.raises(ValueError, match="not results of `itemized-clip evaluate`"):
            read_result(content)


def test_rows_of_a_card_are_rounded_and_read_again():
    (row,) = measured_figures(TaskResult.from_dict({**GROUPED, "figures": {"R@1": {"value": 0.123456}}}))
    assert row.to_dict() == {
        "benchmark": "retrieval",
        "dataset": "retrieval",
        "table": "",
        "metric": "R@1",
        "studies": 500,
        "data_sha256": "1",
        "value": 0.1235,
    }
    assert Measured.from_dict(row.to_dict()).to_dict() == row.to_dict()


def test_the_index_holds_every_mean_once():
    (index,) = ProtocolResult.from_dict(PROTOCOL).model_index("m")
    found = [(entry["dataset"]["name"], [m["name"] for m in entry["metrics"]]) for entry in index["results"]]
    assert found == [("Own, a", ["mean auc"]), ("Own, b", ["balanced_accuracy"]), ("Own, c", ["top1", "mean_rank"])]
