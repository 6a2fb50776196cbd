"""Platt and isotonic scaling against scikit-learn, known probabilities and each other."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation import bootstrap as boot
from itemized_clip_hf.evaluation.scaling import (
    Isotonic,
    Platt,
    choose_scaling,
    resampled_platt,
    sigmoid,
)

GRID = np.array([-1.5, -0.7, 0, 0.7, 1.5])


def draw(count, seed=0, slope=1.5, intercept=-1.0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=count)
    return rng.random(count) < sigmoid(slope * scores + intercept), scores


def test_platt_has_the_lowest_loss_of_smoothed_targets_whatever_the_unit_of_scores():
    from scipy.optimize import minimize

    labels, scores = draw(120)
    scores = 0.2 + 0.03 * scores  # as similarities are
    positives, negatives = labels.sum(), (~labels).sum()
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters):
        logits = parameters[0] * (scores - 0.2) / 0.03 + parameters[1]
        return (np.logaddexp(0, logits) - targets * logits).sum()

    best = minimize(loss, [0, 0], tol=1e-12).x
    fitted = Platt.fit(labels, scores)
    assert fitted.slope == pytest.approx(best[0] / 0.03, rel=1e-4)
    assert fitted.intercept == pytest.approx(best[1] - best[0] * 0.2 / 0.03, rel=1e-4)


@pytest.mark.parametrize("separable", [False, True])
def test_refits_are_fits_to_the_studies_that_were_drawn(separable):
    labels, scores = draw(80)
    labels = scores > 0.2 if separable else labels
    counts = boot.draw_counts(80, 6, seed=1)
    for row, found in zip(counts, resampled_platt(labels, scores, counts), strict=True):
        drawn = np.repeat(np.arange(80), row)
        fitted = Platt.fit(labels[drawn], scores[drawn])
        assert found == pytest.approx([fitted.slope, fitted.intercept], rel=1e-3)
    one_class = np.where(labels, 0, 1)[None]
    assert len(resampled_platt(labels, scores, one_class)) == 0


def test_an_interval_is_the_middle_of_the_refits():
    labels, scores = draw(300)
    fitted = Platt.fit(labels, scores, boot.draw_counts(300, 200))
    low, high = fitted.interval(GRID)
    assert ((low < fitted.probability(GRID)) & (fitted.probability(GRID) < high)).all()
    drawn = sigmoid(np.outer(fitted.refits[:, 0], GRID) + fitted.refits[:, 1:])
    assert low == pytest.approx(np.quantile(drawn, 0.025, axis=0), rel=1e-3)
    assert Platt.from_dict(fitted.to_dict()).interval(GRID)[1] == pytest.approx(high, rel=1e-6)


def test_isotonic_steps_are_shares_and_never_fall():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=4000)
    truth = np.select([scores < -0.5, scores < 0.8], [0.1, 0.4], 0.9)
    labels = rng.random(4000) < truth
    fitted = Isotonic.fit(labels, scores, boot.draw_counts(4000, 50))
    places = np.array([-1.5, 0.2, 1.5])
    assert fitted.probability(places) == pytest.approx([0.1, 0.4, 0.9], abs=0.06)
    low, high = fitted.interval(places)
    assert ((low <= [0.1, 0.4, 0.9]) & ([0.1, 0.4, 0.9] <= high)).all()
    everywhere = fitted.probability(np.linspace(-9, 9, 500))
    assert (np.diff(everywhere) >= 0).all() and 0 < everywhere[0] and everywhere[-1] < 1
    again = Isotonic.from_dict(fitted.to_dict())
    assert again.interval(places)[0] == pytest.approx(low) and again.probability(places) == pytest.approx(
        fitted.probability(places)
    )


def test_no_step_is_surer_than_its_number_of_studies():
    scores = np.linspace(0, 1, 200)
    fitted = Isotonic.fit(scores > 0.5, scores, boot.draw_counts(200, 50))
    low, high = fitted.interval([0.1, 0.9])
    # Wilson's interval of 0 in 100
    assert high[0] == pytest.approx(1.96**2 / (100 + 1.96**2), rel=0.02) and low[1] == pytest.approx(
        1 - high[0], rel=0.01
    )


def test_what_is_chosen():
    labels, scores = draw(400)
    assert choose_scaling(labels, scores, refits=5)[0].method == "platt"
    steps = np.where(np.abs(scores) < 0.3, 0.5, np.where(scores > 0, 0.98, 0.02))
    rng = np.random.default_rng(1)
    far = scores * np.where(scores > 0, 40, 0.01)  # no sigmoid fits this
    chosen, reason, losses = choose_scaling(rng.random(400) < steps, far, refits=5)
    assert chosen.method == "isotonic" and reason == "" and losses["isotonic"] < losses["platt"]
    few = np.arange(400) < 9
    assert choose_scaling(few, scores)[:2] == (None, "9 positives and 391 negatives, fewer than 10 of one kind")
    chosen, reason, _ = choose_scaling(labels, -scores, refits=5)
    assert chosen is None and "do not score higher" in reason
    assert "isotonic" not in choose_scaling(labels[:60], scores[:60])[2]


@pytest.mark.slow
def test_probabilities_lie_in_their_intervals():
    """Known probabilities, Platt scaling as it is specified: 93 to 97 % of 500 repeats, at every score and over all."""
    hits = []
    for repeat in range(500):
        labels, scores = draw(300, seed=repeat)
        low, high = Platt.fit(labels, scores, boot.draw_counts(300, 200, repeat)).interval(GRID)
        truth = sigmoid(1.5 * GRID - 1)
        hits.append((low <= truth) & (truth <= high))
    shares = np.mean(hits, 0)
    assert 0.93 <= shares.mean() <= 0.97 and (np.abs(shares - 0.95) <= 0.02 + 1e-9).all()
