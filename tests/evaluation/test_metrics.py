"""Every metric against an independent formulation by plain loops, and against the recorded numbers."""

import math

import numpy as np
import pytest
from golden_cases import case

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation import metrics
from itemized_clip_hf.evaluation.protocols import Protocol, load_protocol
from itemized_clip_hf.evaluation.protocols.labels import Truth
from itemized_clip_hf.evaluation.protocols.summary import summarize


def draw(seed, count=40, ties=False):
    generator = np.random.default_rng(seed)
    labels = generator.random(count) < 0.4
    labels[:2] = True, False
    scores = 0.4 * labels + 0.5 * generator.normal(size=count)
    return labels, np.round(scores, 1) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision(ties):
    labels, scores = draw(0, ties=ties)
    total, recalled = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = scores >= threshold
        recall = (labels & above).sum() / labels.sum()
        total += (recall - recalled) * (labels & above).sum() / above.sum()
        recalled = recall
    assert metrics.average_precision(labels, scores) == pytest.approx(total)
    assert math.isnan(metrics.average_precision([0, 0], [0.1, 0.2]))


def corner(labels, scores, threshold):
    above = scores > threshold
    return math.hypot(1 - (above & labels).sum() / labels.sum(), (above & ~labels).sum() / (~labels).sum())


@pytest.mark.parametrize("seed", range(5))
def test_thresholds(seed):
    labels, scores = draw(seed, ties=seed % 2 == 1)
    grid = np.linspace(-1, 1, 1000)
    distances = [corner(labels, scores, threshold) for threshold in grid]
    expected = max(t for t, d in zip(grid, distances) if d <= min(distances) + 1e-12)
    assert metrics.reference_threshold(labels, scores) == expected
    exact = metrics.roc_closest_threshold(labels, scores)
    assert corner(labels, scores, exact) == pytest.approx(min(corner(labels, scores, s - 1e-9) for s in [*scores, 9]))
    assert math.isnan(metrics.reference_threshold([1, 1], [0.1, 0.2]))
    assert math.isnan(metrics.roc_closest_threshold([1, 1], [0.1, 0.2]))


def f1(labels, predictions):
    hits = sum(a and b for a, b in zip(labels, predictions))
    return 2 * hits / (sum(labels) + sum(predictions)) if sum(labels) + sum(predictions) else 0.0


def test_threshold_metrics():
    labels, scores = draw(3)
    predictions = scores > 0.2
    found = metrics.threshold_metrics(labels, predictions)
    hits, count = (labels & predictions).sum(), len(labels)
    specificity = (~labels & ~predictions).sum() / (~labels).sum()
    weighted = (f1(labels, predictions) * labels.sum() + f1(~labels, ~predictions) * (~labels).sum()) / count
    assert found == pytest.approx(
        {
            "accuracy": np.mean([a == b for a, b in zip(labels, predictions)]),
            "balanced_accuracy": (hits / labels.sum() + specificity) / 2,
            "weighted_f1": weighted,
            "recall": hits / labels.sum(),
            "precision": hits / predictions.sum(),
        }
    )


def test_choices():
    generator = np.random.default_rng(4)
    scores, classes = generator.normal(size=(50, 4)), generator.integers(0, 4, 50)
    predictions = [int(row.argmax()) for row in scores]
    found = metrics.choice_metrics(scores, classes)
    recalls, weighted = [], 0.0
    for c in range(4):
        own = [p for p, k in zip(predictions, classes) if k == c]
        recalls.append(sum(p == c for p in own) / len(own))
        weighted += f1([k == c for k in classes], [p == c for p in predictions]) * len(own) / 50
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["weighted_f1"] == pytest.approx(weighted)
    assert found["accuracy"] == pytest.approx(np.mean([p == k for p, k in zip(predictions, classes)]))


def test_retrieval_ranks():
    generator = np.random.default_rng(5)
    scores = generator.normal(size=(6, 20))
    relevant = [sorted(generator.choice(20, 3, replace=False).tolist()) for _ in range(6)]
    order = [list(np.argsort(-row)) for row in scores]
    best = [1 + min(places.index(r) for r in own) for places, own in zip(order, relevant)]
    worst = [1 + max(places.index(r) for r in own) for places, own in zip(order, relevant)]
    np.testing.assert_array_equal(metrics.best_ranks(scores, relevant), best)
    np.testing.assert_array_equal(metrics.worst_ranks(scores, relevant), worst)
    summary = metrics.retrieval_summary(best, levels=(1, 5))
    assert summary["R@1"] == sum(r <= 1 for r in best) / 6 and summary["R@5"] == sum(r <= 5 for r in best) / 6
    assert summary["mean_rank"] == pytest.approx(sum(best) / 6) and summary["median_rank"] == np.median(best)
    assert metrics.best_ranks(np.zeros((1, 5)), [[2]])[0] == 3  # chance where nothing tells texts apart
    assert (
        metrics.best_ranks(np.array([[0.9, 0.9, 0.1]]), [[0, 1]])[0] == 1
    )  # relevant ones do not stand above each other
    assert metrics.worst_ranks(np.array([[0.9, 0.9, 0.1]]), [[0, 1]])[0] == 2
    with pytest.raises(ValueError, match="not a number"):
        metrics.best_ranks(np.array([[np.nan, 0.1]]), [[0]])


def test_overlap():
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    first[:2], second[1:3] = True, True
    assert metrics.iou(first, second) == pytest.approx(4 / 12) and metrics.dice(first, second) == pytest.approx(0.5)
    assert math.isnan(metrics.iou(first & False, second & False))


def test_calibration():
    generator = np.random.default_rng(6)
    probabilities = generator.random(20_000)
    honest = generator.random(20_000) < probabilities
    assert metrics.expected_calibration_error(honest, probabilities) < 0.02
    mean, share, count = metrics.calibration_curve(honest, probabilities)
    bins = [(probabilities >= k / 10) & (probabilities < (k + 1) / 10) for k in range(10)]
    np.testing.assert_allclose(mean, [probabilities[b].mean() for b in bins])
    np.testing.assert_allclose(share, [honest[b].mean() for b in bins])
    assert count.sum() == 20_000


def test_recorded_chest_ct():
    meta, tensors, _ = case("metrics_ct")
    labels, scores = tensors["in.labels"].numpy(), tensors["in.scores"].numpy()
    for points in (1000, 4000):
        found = [metrics.reference_threshold(labels[:, j], scores[:, j], points) for j in range(labels.shape[1])]
        assert found == meta[f"thresholds_{points}"]
    protocol = load_protocol("ct-rate")
    truth = Truth([str(i) for i in range(len(labels))], labels=labels.astype(float))
    figures = summarize(protocol, {name: [name] for name in protocol.names}, scores, truth, resamples=0).to_dict()
    for name, recorded in zip(protocol.names, meta["per_class"]):
        own = figures["findings"][name]
        assert {key: own[key]["value"] for key in recorded} == pytest.approx(recorded)
    printed = {"auc": "auc", "acc (balanced)": "accuracy", "f1 (weighted)": "weighted_f1"}
    printed |= {"recall": "recall", "precision": "precision"}
    for name, value in meta["mean"].items():
        ours = next(mine for theirs, mine in printed.items() if name.endswith(theirs))
        assert figures["mean"][ours]["value"] == pytest.approx(value)


def test_recorded_pub_brain_5():
    import re

    meta, tensors, _ = case("metrics_pubbrain5")
    classes = tensors["in.labels"].numpy().argmax(1)
    truth = Truth([str(i) for i in range(len(classes))], classes=classes)
    protocol = load_protocol("pub-brain-5")
    figures = summarize(protocol, {}, tensors["in.logits"].numpy(), truth, resamples=0).to_dict()["tasks"]
    words = {"Balanced Acc": "balanced_accuracy", "F1": "weighted_f1", "Recall": "recall", "Precision": "precision"}
    words["AUC"] = "auc"
    seen = 0
    for line, task in zip(meta["reference_printout"], figures):
        for word, value in re.findall(r"([A-Za-z0-9 ]+): ([0-9.]+)", line.split(": ", 1)[1]):
            ours = next(mine for theirs, mine in words.items() if word.strip().endswith(theirs))
            assert figures[task][ours]["value"] == pytest.approx(float(value), abs=1e-12), (task, word)
            seen += 1
    assert seen == 4 * 5 + 2


def test_best_prompt_is_flagged_and_chosen():
    protocol = Protocol("own", findings={"a": ["x", "y"], "b": "z"}, best_prompt=True)
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1.0]])
    scores = np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 1.0], [0.3, 0.1, 0.2], [0.4, 0.0, 0.7]])
    truth = Truth(list("abcd"), labels=labels)
    figures = summarize(protocol, protocol.choose_prompts(), scores, truth, resamples=50).to_dict()
    assert figures["findings"]["a"]["prompt"] == "y" and figures["findings"]["a"]["auc"]["value"] == 1
    assert figures["findings"]["b"]["auc"]["value"] == 1
