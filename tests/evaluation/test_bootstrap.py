"""Resampled figures are those of the resample; intervals hold the truth as often as they say."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation import bootstrap as boot
from itemized_clip_hf.evaluation import metrics


@pytest.fixture
def drawn():
    generator = np.random.default_rng(0)
    labels = generator.random(60) < 0.4
    scores = np.round(0.5 * labels + generator.normal(size=60), 1) / 4
    return labels, scores, boot.draw_counts(60, 20, seed=1)


def rows(counts):
    return [np.repeat(np.arange(counts.shape[1]), row) for row in counts]


def test_auroc_and_average_precision(drawn):
    labels, scores, counts = drawn
    for resampled, metric in (
        (boot.resampled_auroc, metrics.auroc),
        (boot.resampled_average_precision, metrics.average_precision),
    ):
        expected = [metric(labels[row], scores[row]) for row in rows(counts)]
        np.testing.assert_allclose(resampled(labels, scores, counts), expected)


def test_thresholds_are_chosen_in_every_resample(drawn):
    labels, scores, counts = drawn
    grid = np.linspace(-1, 1, 1000)
    found = boot.resampled_threshold_metrics(labels, scores, counts, grid)
    fixed = boot.resampled_threshold_metrics(labels, scores, counts, [0.1], choose=False)
    for number, row in enumerate(rows(counts)):
        threshold = metrics.reference_threshold(labels[row], scores[row])
        for drawn_figures, at in ((found, threshold), (fixed, 0.1)):
            expected = metrics.threshold_metrics(labels[row], scores[row] > at)
            assert {name: values[number] for name, values in drawn_figures.items()} == pytest.approx(expected)


def test_choices(drawn):
    generator = np.random.default_rng(2)
    scores, classes = generator.normal(size=(60, 3)), generator.integers(0, 3, 60)
    found = boot.resampled_choice(scores.argmax(1), classes, drawn[2], 3)
    for number, row in enumerate(rows(drawn[2])):
        expected = metrics.choice_metrics(scores[row], classes[row])
        assert {name: values[number] for name, values in found.items()} == pytest.approx(expected)


def test_any_metric_and_means(drawn):
    values = np.random.default_rng(3).normal(size=60)
    values[5] = np.nan
    found = boot.bootstrap(lambda row: {"mean": float(np.nanmean(values[row]))}, drawn[2])
    assert found["mean"] == pytest.approx(boot.interval(boot.resampled_mean(values, drawn[2])))


def test_resamples_without_a_class_are_left_out():
    counts = boot.draw_counts(3, 200, seed=0)
    resampled = boot.resampled_auroc([1, 0, 0], [0.9, 0.1, 0.2], counts)
    assert np.isnan(resampled).any() and boot.interval(resampled) == (1.0, 1.0)


@pytest.mark.parametrize("figure", ["auroc", "accuracy", "mean rank"])
def test_intervals_cover_the_truth(figure):
    """93 to 97 % of 1,000 simulated data sets of 150 studies, with the truth from the distribution they are drawn from."""
    from math import erf

    generator = np.random.default_rng(4)
    counts = boot.draw_counts(150, 600, seed=5)
    covered = 0
    for _ in range(1000):
        labels = generator.random(150) < 0.4
        scores = labels + generator.normal(size=150)
        if figure == "auroc":
            truth, resampled = 0.5 + 0.5 * erf(0.5), boot.resampled_auroc(labels, scores, counts)
        elif figure == "accuracy":
            truth = 0.5 + 0.5 * erf(0.5 / 2**0.5)
            resampled = boot.resampled_mean((scores > 0.5) == labels, counts)
        else:
            ranks = generator.geometric(0.3, 150)
            truth, resampled = 1 / 0.3, boot.resampled_mean(ranks, counts)
        low, high = boot.interval(resampled)
        covered += low <= truth <= high
    assert 930 <= covered <= 970, covered


def test_calibration_errors_of_resamples_less_what_resampling_adds():
    from itemized_clip_hf.evaluation.metrics import chance_calibration_error, expected_calibration_error

    rng = np.random.default_rng(0)
    probabilities = rng.random(150)
    labels = rng.random(150) < probabilities**2
    counts = boot.draw_counts(150, 120)
    plain = [
        expected_calibration_error(labels[drawn], probabilities[drawn])
        for drawn in (np.repeat(np.arange(150), row) for row in counts)
    ]
    found = boot.resampled_calibration_error(labels, probabilities, counts)
    estimate = expected_calibration_error(labels, probabilities)
    assert found == pytest.approx(np.maximum(plain - (np.mean(plain) - estimate), 0))
    assert boot.resampled_calibration_error(labels, probabilities, np.ones((1, 150), int))[0] == pytest.approx(estimate)
    drawn = [expected_calibration_error(rng.random(150) < probabilities, probabilities) for _ in range(400)]
    assert chance_calibration_error(probabilities) == pytest.approx(np.mean(drawn), rel=0.08)
