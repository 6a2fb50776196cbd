"""Groups of studies: figures of each by itself, gaps that are known, and columns that are refused."""

import json

import numpy as np
import pytest

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation import bootstrap as boot
from itemized_clip_hf.evaluation.metrics import auroc
from itemized_clip_hf.evaluation.protocols import Protocol
from itemized_clip_hf.evaluation.protocols.labels import Truth, read_truth
from itemized_clip_hf.evaluation.protocols.subgroups import compare_groups, largest_gap
from itemized_clip_hf.evaluation.results import ProtocolResult, Subgroups, TableResult, measured_figures

PROTOCOL = Protocol("own", findings=["a", "b"])
PROMPTS = {"a": ["a"], "b": ["b"]}


def draw(sizes, shifts, seed=0):
    """Groups whose AUC of finding `a` is Phi(shift / sqrt 2); `b` is rare."""
    rng = np.random.default_rng(seed)
    values = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    shift = np.repeat(shifts, sizes)
    labels = np.stack([rng.random(len(values)) < 0.4, np.arange(len(values)) % 50 == 0], 1).astype(float)
    scores = rng.normal(size=labels.shape) + shift[:, None] * labels
    return scores, Truth([str(n) for n in range(len(values))], labels=labels, groups={"site": values.tolist()})


def test_every_group_has_the_figure_of_its_studies_alone():
    scores, truth = draw([120, 80, 12], [1.5, 0.5, 1.0])
    found = compare_groups(PROTOCOL, PROMPTS, scores, truth, resamples=50)["site"]
    assert found.left_out == ["b"]  # too rare in every group
    places = np.array(truth.groups["site"])
    for name, group in found.groups.items():
        rows = places == name
        assert group.studies == rows.sum()
        assert group.estimate.value == pytest.approx(auroc(truth.labels[rows, 0], scores[rows, 0]))
        assert group.estimate.low < group.estimate.value < group.estimate.high
    assert [group.small for group in found.groups.values()] == [False, False, True]
    assert found.between == ("g0", "g1") and found.gap.low < found.gap.value < found.gap.high
    assert found.gap.value == found.groups["g0"].estimate.value - found.groups["g1"].estimate.value
    again = Subgroups.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    table = TableResult(212, {}, findings={}, by={"site": found})
    rows = measured_figures(ProtocolResult("own", "Own", ("", found.gap), {"": table}))
    assert [row.benchmark for row in rows] == [
        "Own, site = g0, without b",
        "Own, site = g1, without b",
        "Own, site = g2 (small), without b",
        "Own, by site, without b",
    ]
    assert rows[-1].studies == sum(group.studies for group in found.groups.values() if not group.small)
    assert rows[-1].metric == "largest gap of auc" and rows[-1].estimate == found.gap
    assert not compare_groups(PROTOCOL, PROMPTS, scores, truth, resamples=0)["site"].gap.has_interval


def test_a_gap_of_two_groups_is_the_ordinary_one():
    rng = np.random.default_rng(0)
    drawn = {"x": (0.8, 0.8 + 0.03 * rng.normal(size=4000)), "y": (0.9, 0.9 + 0.04 * rng.normal(size=4000))}
    gap, between = largest_gap(drawn)
    assert between == ("y", "x") and gap.value == pytest.approx(0.1)
    assert (gap.low, gap.high) == pytest.approx((0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05), abs=0.005)
    wider, _ = largest_gap({**drawn, "z": (0.85, 0.85 + 0.04 * rng.normal(size=4000))})
    assert wider.value == gap.value and wider.low < gap.low
    assert largest_gap({"x": drawn["x"]}) == (None, None)


def test_choices_are_grouped_too():
    protocol = Protocol("own", classes=["x", "y"], tasks={"x or y": ["x", "y"]})
    rng = np.random.default_rng(1)
    classes, values = rng.integers(0, 2, 90), np.where(np.arange(90) < 40, "F", "M")
    scores = np.eye(2)[np.where((values == "F") | (rng.random(90) < 0.7), classes, 1 - classes)]
    truth = Truth([str(n) for n in range(90)], classes=classes, groups={"sex": values.tolist()})
    found = compare_groups(protocol, {"x": ["x"], "y": ["y"]}, scores, truth, resamples=50)["sex"]
    assert found.metric == "balanced_accuracy" and found.groups["F"].estimate.value == 1
    assert found.gap.value == pytest.approx(1 - found.groups["M"].estimate.value) and found.left_out == []


def test_columns_are_read_as_they_stand(tmp_path):
    table = tmp_path / "labels.csv"
    lines = [f"s{n},{n % 2},0,{'F ' if n % 3 else ''},Doe{n}^Jane" for n in range(30)]
    table.write_text("\n".join(["id,a,b,Sex,name of patient", *lines]))
    truth = read_truth(PROTOCOL, tmp_path, by=["sex"])[""]
    assert truth.groups["sex"][:4] == ["unknown", "F", "F", "unknown"]
    with pytest.raises(ValueError, match="30 different values, groups have at most 20") as refused:
        read_truth(PROTOCOL, tmp_path, by=["name of patient"])
    assert "Doe" not in str(refused.value)
    with pytest.raises(ValueError, match="no column 'scanner' to group studies by"):
        read_truth(PROTOCOL, tmp_path, by=["scanner"])


@pytest.mark.slow
@pytest.mark.parametrize("shifts, share", [((1.5, 0.9), (0.93, 0.97)), ((1.5, 1.2, 0.7), (0.93, 1.0))])
def test_the_interval_of_a_gap_covers_it(shifts, share):
    """Two groups: 93 to 97 % of 500 repeats. Three: the gap of the pair that was chosen, at least as often."""
    from scipy.stats import norm

    truth_of = {f"g{number}": norm.cdf(shift / np.sqrt(2)) for number, shift in enumerate(shifts)}
    hits = []
    for repeat in range(500):
        scores, truth = draw([200] * len(shifts), shifts, seed=repeat)
        counts, values = boot.draw_counts(len(scores), 300, repeat), np.array(truth.groups["site"])
        groups = {}
        for name in truth_of:
            rows = values == name
            own = truth.labels[rows, 0], scores[rows, 0]
            groups[name] = auroc(*own), boot.resampled_auroc(*own, counts[:, rows])
        gap, (one, other) = largest_gap(groups)
        hits.append(gap.low <= truth_of[one] - truth_of[other] <= gap.high)
    assert share[0] <= np.mean(hits) <= share[1]
