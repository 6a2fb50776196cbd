"""Tables and plots of few-shot curves, and the linear probe of few studies."""

import math

import numpy as np
import pytest
from scipy import stats

from itemized_clip_hf.evaluation.estimates import Estimate
from itemized_clip_hf.evaluation.few_shot import FewShotRun, interval_of_mean, plot_few_shot, tabulate
from itemized_clip_hf.evaluation.label_scores import apply_function, mean_figures, summarize_labels
from itemized_clip_hf.evaluation.linear_probe import probe_scores
from itemized_clip_hf.evaluation.metrics import auroc

RUNS = [
    FewShotRun(method, shots, repeat, studies, {"auc": auc, "average_precision": auc / 2}, {"a": auc})
    for method, shots, repeat, studies, auc in (
        ("LoRA", "all", 0, 50, 0.9),
        ("head", "all", 0, 50, 0.95),
        ("head", 4, 0, 7, 0.7),
        ("head", 4, 1, 8, 0.8),
        ("head", 16, 0, 30, math.nan),
    )
]


def test_a_table_of_repeats():
    rows = tabulate(RUNS, {"auc": Estimate(0.6, 0.5, 0.7)})
    assert [(row["method"], row["shots"]) for row in rows] == [
        ("zero-shot", 0),
        ("head", 4),
        ("head", 16),
        ("head", "all"),
        ("LoRA", "all"),
    ]
    assert rows[0] == {
        "method": "zero-shot",
        "shots": 0,
        "studies": 0,
        "repeats": 0,
        "auc": 0.6,
        "auc_low": 0.5,
        "auc_high": 0.7,
    }
    low, high = stats.t.interval(0.95, 1, loc=0.75, scale=stats.sem([0.7, 0.8]))
    assert rows[1]["auc"] == 0.75 and rows[1]["studies"] == 7.5 and rows[1]["repeats"] == 2
    assert (rows[1]["auc_low"], rows[1]["auc_high"]) == (max(0, round(low, 4)), min(1, round(high, 4)))
    assert rows[2]["auc"] is None and rows[3]["auc_low"] is None  # unknown, and one repeat
    assert math.isnan(interval_of_mean([]).value)


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = plot_few_shot(tabulate(RUNS, {"auc": Estimate(0.6, 0.5, 0.7)}), tmp_path / "plot.png", "6 labels")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_probe_of_few_studies():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    truth = np.tile([[1, 0, 1], [0, 1, 1]], (20, 1)).astype(float)
    features = np.concatenate([truth[:, :1] + rng.normal(0, 0.2, (40, 1)), rng.normal(size=(40, 3))], 1)
    features[7] = np.nan
    for few in (2, 6):
        scores = probe_scores(features[:few], truth[:few], features)
        assert np.isnan(scores[7]).all() and not scores[8:, 2].any()  # a label that every study has
        usable = ~np.isnan(scores).any(1)
        assert auroc(truth[usable, 0], scores[usable, 0]) > 0.8


def test_figures_of_labels_and_of_classes():
    logits = np.array([[2.0, -1.0], [1.0, 3.0], [-1.0, 0.5], [0.0, 1.0]])
    labels = np.array([[1, 0], [1, np.nan], [0, 1], [np.nan, 1]])
    found = summarize_labels(["a", "b"], logits, labels, resamples=0)["labels"]
    assert found.findings["a"].estimates["auc"].value == 1 and found.findings["b"].unknown == 1
    classes = summarize_labels(["a", "b"], logits, np.array([0, 1, 0, -100]), resamples=20)
    assert classes["choice"].studies == 3
    assert mean_figures(classes)["accuracy"] == pytest.approx(2 / 3)
    assert mean_figures(classes)["auc"] == 1
    np.testing.assert_allclose(apply_function(logits, "softmax").sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(apply_function(logits, "sigmoid"), 1 / (1 + np.exp(-logits)), rtol=1e-6)
