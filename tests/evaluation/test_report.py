"""Plots of evaluations: the groups of a calibration curve and the figures that hold them."""

import numpy as np
import pytest
from PIL import Image

from itemized_clip_hf.evaluation import metrics
from itemized_clip_hf.evaluation.protocols import Protocol, report
from itemized_clip_hf.evaluation.protocols.labels import Truth

pytest.importorskip("matplotlib")


def test_calibration_groups_studies_of_small_probabilities():
    """Even bins of [0, 1] hold all of them in one, groups tell them apart; honest probabilities lie on the diagonal."""
    rng = np.random.default_rng(0)
    probability = rng.uniform(0.001, 0.08, 20000)
    labels = rng.random(20000) < probability
    assert len(metrics.calibration_curve(labels, probability)[0]) == 1
    mean, share = report.calibration_groups(labels, probability)
    assert len(mean) == 10 and (np.diff(mean) > 0).all()
    np.testing.assert_allclose(share, mean, atol=0.012)
    assert mean.mean() == pytest.approx(probability.mean()) and share.mean() == pytest.approx(labels.mean())
    assert len(report.calibration_groups(labels[:12], probability[:12])[0]) == 2
    assert len(report.calibration_groups(labels[:3], probability[:3])[0]) == 1


def test_figures_of_one_finding_are_large_enough_to_read(tmp_path):
    protocol = Protocol(name="own", findings={"mass": ["mass in the brain"]})
    truth = Truth([f"s{n}" for n in range(30)], labels=(np.arange(30)[:, None] % 2).astype(float))
    scores = np.random.default_rng(0).normal(0, 0.2, (30, 1))
    for logit, name in ((None, "roc.png"), ((10.0, -10.0), "calibration.png")):
        report._plot_curves(protocol, scores, truth, logit, tmp_path / name)
        width, height = Image.open(tmp_path / name).size
        assert width >= 600 and height >= 500
