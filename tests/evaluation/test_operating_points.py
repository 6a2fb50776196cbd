"""Operating points against a plain search over all thresholds."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation import bootstrap as boot
from itemized_clip_hf.evaluation.metrics import roc_closest_threshold
from itemized_clip_hf.evaluation.operating_points import OperatingPoint, check_point, choose_points

NAMES = ("youden", "roc-closest", "sensitivity=0.9", "specificity=0.8", "cost=1", "cost=5")


def draw(count=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.3
    return labels, np.round(rng.normal(size=count) + 1.2 * labels, 1)  # with ties


def rates(labels, scores, threshold):
    above = scores > threshold
    return above[labels].mean(), (~above)[~labels].mean()


@pytest.mark.parametrize("seed", range(4))
def test_every_rule_by_search(seed):
    labels, scores = draw(seed=seed)
    values = np.unique(scores)
    candidates = [values[0] - 1, *((values[1:] + values[:-1]) / 2), values[-1] + 1]
    points = {point.name: point for point in choose_points(labels, scores, NAMES)}
    assert list(points) == list(NAMES)
    found = {t: rates(labels, scores, t) for t in candidates}
    share = labels.mean()
    best = {
        "youden": lambda p, n: -(p + n),
        "roc-closest": lambda p, n: (1 - p) ** 2 + (1 - n) ** 2,
        "cost=1": lambda p, n: share * (1 - p) + (1 - share) * (1 - n),
        "cost=5": lambda p, n: 5 * share * (1 - p) + (1 - share) * (1 - n),
    }
    for name, loss in best.items():
        point = points[name]
        assert loss(*found[point.threshold.value]) == pytest.approx(min(loss(*pair) for pair in found.values()))
    assert points["roc-closest"].threshold.value == pytest.approx(roc_closest_threshold(labels, scores))
    enough = [t for t, (p, _) in found.items() if p >= 0.9]
    assert points["sensitivity=0.9"].threshold.value == max(enough)
    assert points["specificity=0.8"].threshold.value == min(t for t, (_, n) in found.items() if n >= 0.8)
    for point in points.values():
        assert (point.sensitivity.value, point.specificity.value) == pytest.approx(found[point.threshold.value])
    assert points["cost=5"].threshold.value <= points["cost=1"].threshold.value


def test_intervals_are_those_of_resamples():
    labels, scores = draw(60)
    counts = boot.draw_counts(60, 70)
    points = choose_points(labels, scores, ("youden", "sensitivity=0.9"), counts)
    for point in points:
        thresholds, sensitivities = [], []
        for row in counts:
            drawn = np.repeat(np.arange(60), row)
            (alone,) = choose_points(labels[drawn], scores[drawn], (point.name,))
            # Between scores that no study of the resample has, all thresholds are the same.
            thresholds.append(rates(labels, scores, alone.threshold.value))
            sensitivities.append(rates(labels[drawn], scores[drawn], point.threshold.value)[0])
        assert (point.sensitivity.low, point.sensitivity.high) == pytest.approx(boot.interval(sensitivities))
        low, high = (rates(labels, scores, end)[0] for end in (point.threshold.high, point.threshold.low))
        wanted = boot.interval([pair[0] for pair in thresholds])
        assert (low, high) == pytest.approx(wanted, abs=0.12)
        again = OperatingPoint.from_dict(point.name, point.to_dict())
        assert again.threshold.value == point.threshold.value and again.specificity.high == point.specificity.high


@pytest.mark.parametrize(
    "name", ["best", "sensitivity=1.2", "sensitivity=0", "specificity=x", "cost=-1", "cost=nan", "cost"]
)
def test_unknown_rules_are_refused(name):
    with pytest.raises(ValueError, match="there is no operating point"):
        check_point(name)
