"""Tables in the documentation are those of the results files; the comparison gives every variant the same budget."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
common, compare, rsicd = (pytest.importorskip(name) for name in ("common", "compare", "rsicd"))
GROUPS = [group for group in ("objectives", "recipe") if (common.RESULTS / f"rsicd-compare-{group}.json").exists()]


def table_between(path: Path, mark: str) -> list[str]:
    return path.read_text().split(mark + "\n")[1].split("\n" + common.END_MARK)[0].split("\n")


def test_table_of_the_readme():
    rows = rsicd.readme_rows()
    assert table_between(ROOT / "README.md", rsicd.README_MARK) == rows and len(rows) > 3


@pytest.mark.parametrize("group", GROUPS)
def test_tables_of_the_comparison(group):
    document = json.loads((common.RESULTS / f"rsicd-compare-{group}.json").read_text())
    assert table_between(compare.DOCS, compare.doc_mark(group)) == compare.table_rows(document)
    measured = list(document["variants"])
    assert measured == [name for name in compare.variants(group) if name in measured]
    assert group == "recipe" or measured == list(compare.variants(group))


@pytest.mark.parametrize("group", ["objectives", "recipe"])
def test_every_variant_sees_as_many_pictures(group):
    for name in compare.variants(group):
        recipe = compare.recipe_of("remote-sensing", group, name, 400, 1, None)
        assert recipe.training["max_steps"] * recipe.global_batch_size == 400 * 64, name
        assert recipe.training["seed"] == 1 and recipe.training["warmup_steps"] == 50
    if group == "objectives":
        weights = compare.recipe_of("remote-sensing", group, "itemized_clip, without IIS", 400, 1, None).training
        assert weights["objective_weights"]["iis_weight"] == 0 and weights["objective_weights"]["kta_weight"] == 1.5
        assert "objective_weights" not in compare.recipe_of("remote-sensing", group, "clip", 400, 1, None).training


def test_intervals_over_seeds_and_images():
    generator = np.random.default_rng(0)
    ranks = [generator.integers(1, 31, 500).tolist() for _ in range(3)]
    found = rsicd.summarize(ranks, [[1] * 500] * 2, resamples=400)
    table = np.array(ranks)
    assert found["figures"]["top5"]["value"] == pytest.approx(100 * (table <= 5).mean(), abs=1e-3)
    assert found["figures"]["mean_rank_difference"]["value"] == pytest.approx(table.mean() - 1, abs=1e-3)
    half = (found["figures"]["top1"]["high"] - found["figures"]["top1"]["low"]) / 2
    share = (table <= 1).mean()
    alone = 196 * (share * (1 - share) / 500) ** 0.5  # images alone, one seed, in percent
    assert 0.4 * alone < half < 1.3 * alone
    assert found["by_seed"]["mean_rank"] == [round(float(np.mean(row)), 3) for row in ranks]


def test_table_of_attributions():
    """The documented table is the measured one, and the method that results show beats raw attention in every column."""
    from itemized_clip_hf.explain.attribution import ATTRIBUTIONS, BEST

    attribution = pytest.importorskip("attribution")
    document = json.loads(attribution.RESULTS.read_text())
    assert table_between(attribution.DOCS, attribution.MARK) == attribution.table_rows(document)
    for figure in document["figures"].values():
        assert list(figure["methods"]) == list(ATTRIBUTIONS)
        low, high = figure["methods"][BEST]["interval_of_difference"]
        assert low > 0 if figure["better"] == "higher" else high < 0


def test_differences_of_attributions_are_paired():
    attribution = pytest.importorskip("attribution")
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 40)
    base[:3] = np.nan
    run = {"attention": {c: base for c in attribution.COLUMNS}, "other": {c: base + 0.1 for c in attribution.COLUMNS}}
    for figure in attribution.summarize([run, run], resamples=100).values():
        assert figure["studies"] == 74
        other = figure["methods"]["other"]
        assert other["difference"] == pytest.approx(0.1) and other["interval_of_difference"] == pytest.approx(
            (0.1, 0.1)
        )
        assert other["interval"][1] - other["interval"][0] > 0.2


def test_differences_are_paired_by_seed_and_image():
    generator = np.random.default_rng(0)
    ranks = generator.integers(1, 20, (3, 1)) + generator.integers(0, 10, (3, 200))
    found = rsicd.summarize((ranks + 1).tolist(), ranks.tolist(), resamples=200)["figures"]["mean_rank_difference"]
    assert (found["value"], found["low"], found["high"]) == (1.0, 1.0, 1.0)


def test_every_objective_has_its_own_rate_and_parts_that_of_the_whole(tmp_path):
    for name in compare.with_own_rate("objectives"):
        best = {"clip": 2.0}.get(name, 0.5)
        for rate in compare.RATES:
            place = common.place_of(tmp_path, name, compare.TRIAL_SEED, rate)
            place.mkdir()
            trial = {
                "variant": name,
                "seed": compare.TRIAL_SEED,
                "rate": rate,
                "ranks": {"val": [1 + (rate != best)] * 3},
            }
            (place / "result.json").write_text(json.dumps(trial))
    rates = compare.rates_of(tmp_path, "objectives")
    assert rates["clip"] == 2.0 and rates["siglip"] == 0.5 and rates["itemized_clip, without IIS"] == 0.5
    recipes = [compare.recipe_of("remote-sensing", "objectives", "clip", 400, 1, None, rate) for rate in (1.0, 2.0)]
    for key in ("learning_rate", "muon_learning_rate"):
        assert recipes[1].training[key] == 2 * recipes[0].training[key] > 0


def test_what_the_claims_say_is_what_was_measured():
    """An interval that holds zero is no claim, and one on the wrong side is said."""
    claims = pytest.importorskip("claims")
    generator = np.random.default_rng(0)
    noise = {seed: generator.normal(0, 1, 80) for seed in range(5)}
    better = {"higher": 1, "lower": -1}

    def runs(shift: float) -> dict[int, dict]:
        return {
            seed: {"measured": {name: own + shift * better[way] for name, way in claims.BETTER.items()}}
            for seed, own in noise.items()
        }

    for shift, verdict in ((0.1, "holds"), (-0.1, "the other way"), (0.0, "does not show")):
        arms = {claims.FULL: runs(shift), claims.BASE: runs(0.0), "clip": {s: {"measured": {}} for s in noise}}
        figures = {name: claims.summarize(arms, name, list(noise)) for name in claims.BETTER}
        rows = claims.claim_rows({"figures": figures})[2:]
        assert len(rows) == len(claims.BETTER) and all(row.endswith(f"| {verdict} |") for row in rows), rows
        assert all("clip" not in figure["arms"] for figure in figures.values())
