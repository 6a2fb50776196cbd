"""What an evaluation says of a calibration: its error and its operating point, for the prompts that it was made for."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation.calibrate import fit_findings
from itemized_clip_hf.evaluation.calibration import Calibration
from itemized_clip_hf.evaluation.metrics import expected_calibration_error
from itemized_clip_hf.evaluation.protocols import Protocol
from itemized_clip_hf.evaluation.protocols.labels import Truth
from itemized_clip_hf.evaluation.protocols.summary import summarize

PROMPTS = {"a": ["one a", "two a"], "b": ["one b"]}


def draw(columns, seed):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(300, columns)).astype(np.float32)
    own = scores[:, [columns - 2, columns - 1]]
    labels = (rng.random((300, 2)) < 1 / (1 + np.exp(-2 * own))).astype(float)
    labels[:4, 0] = np.nan
    return scores, Truth([str(number) for number in range(300)], labels=labels)


def made(protocol, columns):
    scores, truth = draw(columns, 0)
    findings = fit_findings(protocol, PROMPTS, scores, truth, ["youden", "cost=4"], resamples=20)
    return Calibration("m", "p", "own", "Own", {"studies": 300}, findings, "cost=4")


@pytest.mark.parametrize("best_prompt, columns", [(False, 2), (True, 3)])
def test_error_and_operating_point_by_hand(best_prompt, columns):
    protocol = Protocol("own", findings=["a", "b"], best_prompt=best_prompt)
    calibration = made(protocol, columns)
    finding = calibration.findings["a"]
    assert finding.unknown == 4 and finding.prompts == (["two a"] if best_prompt else PROMPTS["a"])
    scores, truth = draw(columns, 1)
    found = summarize(protocol, PROMPTS, scores, truth, resamples=30, calibration=calibration)
    known = ~np.isnan(truth.labels[:, 0])
    labels, own = truth.labels[known, 0], scores[known, columns - 2].astype(float)
    row = found.findings["a"].estimates
    probability = finding.scaling.probability(own)
    assert row["calibration_error"].value == pytest.approx(expected_calibration_error(labels, probability))
    assert row["calibration_error"].has_interval and 0 < row["calibration_error_by_chance"].value < 0.1
    above = own > finding.points["cost=4"].threshold.value
    assert row["sensitivity"].value == pytest.approx(above[labels == 1].mean())
    assert row["specificity"].value == pytest.approx((~above)[labels == 0].mean())
    assert row["sensitivity"].low < row["sensitivity"].value < row["sensitivity"].high
    plain = summarize(protocol, PROMPTS, scores, truth, resamples=30)
    assert {m: e for m, e in row.items() if m in plain.findings["a"].estimates} == plain.findings["a"].estimates
    judged = calibration.judge(finding.prompts, own)
    assert [one.positive for one in judged] == above.tolist()
    youden = calibration.with_point("youden").judge(finding.prompts, own)
    assert sum(one.positive for one in youden) <= above.sum() and youden[0].probability == judged[0].probability
    assert calibration.judge(["another text"], own) is None
    with pytest.raises(ValueError, match="has no operating point 'specificity=0.5'; it has youden, cost=4"):
        calibration.with_point("specificity=0.5")


def test_other_prompts_are_not_calibrated():
    protocol = Protocol("own", findings=["a", "b"])
    calibration = made(protocol, 2)
    scores, truth = draw(2, 1)
    found = summarize(protocol, {**PROMPTS, "a": ["one a"]}, scores, truth, resamples=0, calibration=calibration)
    assert "calibration_error" not in found.findings["a"].estimates
    assert "calibration_error" in found.findings["b"].estimates


def test_too_few_studies_of_all_findings_are_refused():
    protocol = Protocol("own", findings=["a"])
    truth = Truth([str(n) for n in range(30)], labels=(np.arange(30) < 3).astype(float)[:, None])
    with pytest.raises(ValueError, match="no finding can be calibrated: a: 3 positives and 27 negatives"):
        fit_findings(protocol, {"a": ["a"]}, np.random.default_rng(0).normal(size=(30, 1)), truth)
