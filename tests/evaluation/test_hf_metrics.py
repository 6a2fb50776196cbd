"""The modules of `evaluate` give the figures of the functions, also when fed batch by batch."""

import numpy as np
import pytest

pytest.importorskip("evaluate")
pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation import metrics
from itemized_clip_hf.evaluation.hf_metrics import Retrieval, ZeroShotClasses, ZeroShotFindings


def test_findings():
    generator = np.random.default_rng(0)
    labels = (generator.random((30, 2)) < 0.5).astype(int)
    scores = (0.3 * labels + generator.normal(size=(30, 2))).astype(np.float32) / 3
    labels[4, 1] = -1
    module = ZeroShotFindings()
    for start in (0, 10, 20):
        module.add_batch(
            predictions=scores[start : start + 10].tolist(), references=labels[start : start + 10].tolist()
        )
    found = module.compute(names=["a", "b"], threshold_points=1000, resamples=50)
    known = labels[:, 1] >= 0
    assert found["findings"]["b"]["unknown"] == 1
    assert found["findings"]["b"]["auc"]["value"] == pytest.approx(metrics.auroc(labels[known, 1], scores[known, 1]))
    assert found["findings"]["a"]["threshold"] == metrics.reference_threshold(labels[:, 0], scores[:, 0])


def test_classes_and_retrieval():
    generator = np.random.default_rng(1)
    scores, classes = generator.normal(size=(20, 7)).astype(np.float32), generator.integers(0, 7, 20)
    found = ZeroShotClasses().compute(predictions=scores.tolist(), references=classes.tolist())
    assert {k: found[k] for k in ("top1", "top5", "mean_rank")} == metrics.classification_summary(scores, classes)
    relevant = [[int(c), int((c + 1) % 7)] for c in classes]
    ranks = Retrieval().compute(predictions=scores.tolist(), references=relevant, levels=(1, 3), resamples=20)
    best = metrics.best_ranks(scores, relevant)
    assert (
        ranks["R@1"] == (best <= 1).mean()
        and ranks["complete@3"] == (metrics.worst_ranks(scores, relevant) <= 3).mean()
    )
    assert ranks["R@1 interval"][0] <= ranks["R@1"] <= ranks["R@1 interval"][1]
