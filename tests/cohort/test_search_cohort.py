"""Searches in cohorts against plain numpy, what the model scores, and places that are known."""

import io
import sys

import numpy as np
import pytest
import torch
from cohorts import PROMPTS, phantom_records, write_cohort

pytest.importorskip("pyarrow")

from itemized_clip_hf.cohort.embed import EmbedOptions, embed_cohort
from itemized_clip_hf.cohort.file import Cohort, StudyTokens, unit
from itemized_clip_hf.cohort.index import EXTRA, CohortIndex
from itemized_clip_hf.cohort.search import (
    best,
    describe_region,
    embed_study,
    find_duplicates,
    first_stage,
    nearest,
    search_region,
    search_study,
    search_text,
)
from itemized_clip_hf.evaluation.encode import encode_texts
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.models.load import load

TEXT = "enlarged ventricles"


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load(model_folder, "cpu")


@pytest.fixture(scope="module")
def records():
    return phantom_records(12)


@pytest.fixture(scope="module")
def cohort(loaded, records, tmp_path_factory):
    path = tmp_path_factory.mktemp("cohort") / "cohort.parquet"
    embed_cohort(*loaded, records, path, EmbedOptions(PROMPTS, True, batch_size=4))
    return Cohort(path)


def test_the_best_are_the_first_of_a_sorted_list():
    rng = np.random.default_rng(0)
    for top in (1, 5, 40, 50):
        scores = rng.integers(0, 20, 40).astype(np.float32)  # many are equal
        values, places = best(scores, top)
        order = np.argsort(-scores, kind="stable")[:top]
        np.testing.assert_array_equal(values, scores[order])
        assert set(scores[places]) == set(scores[order]) and len(set(places.tolist())) == min(top, 40)
    rows, query = unit(rng.normal(size=(30, 8))), rng.normal(size=8)
    np.testing.assert_array_equal(nearest(rows, query, 4)[1], np.argsort(-(rows @ query))[:4])


def test_all_studies_are_scored_as_predict_scores_them(loaded, records, cohort):
    scores = score_studies(*loaded, [record["images"] for record in records], [TEXT])[1][:, 0]
    found = search_text(cohort, *loaded, TEXT, top=12, candidates=None)
    assert found.candidates == found.studies == 12 and found.quantity == "text-conditioned cosine similarity"
    for hit in found.hits:
        assert hit.score == pytest.approx(scores[cohort.places[hit.id]], abs=2e-3)  # tokens are kept in float16
    values = [hit.score for hit in found.hits]
    assert values == sorted(values, reverse=True) and len({hit.id for hit in found.hits}) == 12


def test_two_stages(loaded, cohort):
    model, processor = loaded
    direction = unit(encode_texts(model, processor, [TEXT])[0].numpy())
    first, places = first_stage(cohort, direction, 5)
    by_hand = np.max([unit(cohort.item_embeddings(label)) @ direction for label in PROMPTS], axis=0)
    np.testing.assert_array_equal(places, np.argsort(-by_hand)[:5])
    every = {hit.id: hit.score for hit in search_text(cohort, model, processor, TEXT, 12, None).hits}
    found = search_text(cohort, model, processor, TEXT, top=3, candidates=5)
    chosen = sorted((cohort.ids[place] for place in places), key=lambda name: -every[name])
    assert found.candidates == 5 and [hit.id for hit in found.hits] == chosen[:3]
    for hit in found.hits:
        assert hit.score == pytest.approx(every[hit.id], abs=1e-5)
        assert hit.first_stage == pytest.approx(by_hand[cohort.places[hit.id]], abs=1e-6)
    assert set(found.to_dict()["hits"][0]) == {"id", "score", "first_stage"}


def test_cohorts_without_prompts_or_tokens(loaded, records, tmp_path):
    model, processor = loaded
    direction = unit(encode_texts(model, processor, [TEXT])[0].numpy())
    for tokens in (False, True):
        path = tmp_path / f"{tokens}.parquet"
        embed_cohort(model, processor, records, path, EmbedOptions(tokens=tokens))
        own = Cohort(path)
        cosines = own.directions @ direction
        found = search_text(own, model, processor, TEXT, top=4, candidates=4)
        order = [own.ids[place] for place in np.argsort(-cosines)[:4]]
        if tokens:
            assert {hit.id for hit in found.hits} == set(order) and not found.notes
        else:
            assert [hit.id for hit in found.hits] == order and found.quantity == "cosine of text and global embedding"
            assert "embed --tokens" in found.notes[0]


def test_studies_like_one(loaded, records, cohort):
    model, processor = loaded
    name = cohort.ids[3]
    found = search_study(cohort, cohort.embeddings[3], name, top=4, leave_out=name)
    order = np.argsort(-(cohort.directions @ cohort.directions[3]))
    assert [hit.id for hit in found.hits] == [cohort.ids[place] for place in order if place != 3][:4]
    row = embed_study(model, processor, records[3]["images"], cohort.facts, tokens=True)
    itself = search_study(cohort, row["embedding"], "a new study", top=1).hits[0]
    assert itself.id == name and itself.score == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(StudyTokens.of_row(row).flat, dict(cohort.tokens_of([3]))[3].flat, atol=2e-3, rtol=2e-3)


def test_a_model_or_preprocessing_that_is_not_the_cohorts(loaded, records, cohort, make_model, processor):
    with pytest.raises(ValueError, match="the model is not the one that the cohort was embedded by"):
        search_text(cohort, make_model(seed=1), loaded[1], TEXT)
    with pytest.raises(ValueError, match="the model is not the one"):
        embed_study(make_model(seed=1), loaded[1], records[0]["images"], cohort.facts)
    processor.image_processor.depth = 4
    with pytest.raises(ValueError, match="the preprocessing or tokenizer is not that of the cohort"):
        search_text(cohort, loaded[0], processor, TEXT)


def test_regions_are_found_where_they_are(tmp_path):
    """One token of one study is like the region's: the study is first, and the place is that token's."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(5, 2, 2, 3, 3, 16))
    tokens[4, 1, 1, 0, 2] = 3 * tokens[0, 0, 1, 2, 1] + 0.01  # longer, and elsewhere
    own = write_cohort(tmp_path / "c.parquet", rng.normal(size=(5, 16)), tokens=tokens)
    query = dict(own.tokens_of([0]))[0]
    region = describe_region(query, {"T1": [(2, 4), (8, 12), (4, 8)]})
    np.testing.assert_allclose(region, unit(tokens[0, 0, 1, 2, 1].astype(np.float16)), atol=1e-6)
    found = search_region(own, region, "a box", top=3, leave_out="s0")
    assert found.hits[0].id == "s4" and found.hits[0].score > 0.99 and found.hits[1].score < 0.9
    assert found.hits[0].scan == "T2" and found.candidates == 4
    np.testing.assert_allclose(found.hits[0].voxel, [2.5, 1.5, 9.5], atol=0.51)
    wide = describe_region(query, {"T1": [(2, 3), (11, 12), (4, 9)]})  # the token and its right neighbor
    both = unit(tokens[0, 0, 1, 2, 1:3].astype(np.float16)).mean(0)
    np.testing.assert_allclose(wide, unit(both), atol=1e-6)
    for regions, told in (
        ({"FLAIR": [(0, 1)] * 3}, "no scan 'FLAIR'"),
        ({None: [(0, 1)] * 3}, "has no scan None"),
        ({"T1": [(0, 9), (0, 1), (0, 1)]}, r"does not lie in a scan of \(4, 12, 12\) voxels"),
        ({"T1": [(1, 1), (0, 1), (0, 1)]}, "does not lie in a scan"),
    ):
        with pytest.raises(ValueError, match=told):
            describe_region(query, regions)


def test_near_duplicates_that_were_planted(tmp_path, monkeypatch):
    monkeypatch.setattr("itemized_clip_hf.cohort.search.ROWS_AT_ONCE", 7)  # several blocks
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 24)).astype(np.float32)
    rows[31] = 2 * rows[5] + 0.01 * rng.normal(size=24)
    rows[12] = rows[5] + 0.01 * rng.normal(size=24)
    train = write_cohort(tmp_path / "train.parquet", rows, [f"train-{n}" for n in range(40)])
    found = find_duplicates(train, 0.999)
    assert {(pair.first, pair.second) for pair in found.pairs} == {
        ("train-5", "train-12"),
        ("train-5", "train-31"),
        ("train-12", "train-31"),
    }
    assert set(found.found) == {"train-5", "train-12", "train-31"} and found.studies == 40
    cosines = train.directions @ train.directions.T - 2 * np.eye(40)
    assert found.nearest["0.5"] == pytest.approx(np.median(cosines.max(1)), abs=1e-5)
    assert [pair.cosine for pair in found.pairs] == sorted((pair.cosine for pair in found.pairs), reverse=True)

    test = write_cohort(tmp_path / "test.parquet", np.stack([rng.normal(size=24), rows[20] * 0.5]), ["t0", "t1"])
    leaks = find_duplicates(test, 0.999, train)
    assert [(pair.first, pair.second) for pair in leaks.pairs] == [("t1", "train-20")]
    assert leaks.found == ["t1"] and (leaks.studies, leaks.others) == (2, 40)
    other = write_cohort(tmp_path / "other.parquet", rows, model="another")
    with pytest.raises(ValueError, match="was embedded by another model"):
        find_duplicates(test, 0.999, other)
    with pytest.raises(ValueError, match="expected a cosine above 0"):
        find_duplicates(train, 1.5)
    monkeypatch.setattr("itemized_clip_hf.cohort.search.MOST_PAIRS", 10)
    with pytest.raises(ValueError, match="raise the threshold"):
        find_duplicates(train, 0.01)


def test_duplicates_of_generated_studies(loaded, records, tmp_path):
    """A study that is exported twice, the second time with another name and a little noise, leaks."""
    from itemized_clip_hf.data.study import Scan

    rng = np.random.default_rng(0)
    noisy = {
        name: Scan(scan.array + rng.normal(0, 1e-3, scan.array.shape).astype(np.float32), scan.affine, name)
        for name, scan in records[7]["images"].items()
    }
    embed_cohort(*loaded, records, tmp_path / "train.parquet")
    others = phantom_records(3, seed=9)
    embed_cohort(*loaded, [*others, {"id": "again", "images": noisy}], tmp_path / "test.parquet")
    test, train = Cohort(tmp_path / "test.parquet"), Cohort(tmp_path / "train.parquet")
    found = find_duplicates(test, 0.99999, train)
    assert [(pair.first, pair.second) for pair in found.pairs] == [("again", records[7]["id"])]


def test_without_faiss_the_extra_is_named(cohort, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=rf"pip install 'itemized-clip-hf\[{EXTRA}\]'"):
        CohortIndex(cohort)


def test_an_index_finds_what_exact_search_finds(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(20, 32))[rng.integers(0, 20, 2000)] + 0.5 * rng.normal(size=(2000, 32))).astype(np.float32)
    own = write_cohort(tmp_path / "c.parquet", rows)
    index = CohortIndex(own, tmp_path / "c.faiss")
    kept = (tmp_path / "c.faiss").stat().st_mtime_ns
    again = CohortIndex(own, tmp_path / "c.faiss")
    assert (tmp_path / "c.faiss").stat().st_mtime_ns == kept
    hits = 0
    for place in range(0, 2000, 50):
        exact = search_study(own, own.embeddings[place], "q", leave_out=own.ids[place])
        for searched in (index, again):
            found = search_study(own, own.embeddings[place], "q", index=searched, leave_out=own.ids[place])
            assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
            hits += len({hit.id for hit in found.hits} & {hit.id for hit in exact.hits})
    assert hits / (40 * 2 * 10) >= 0.95
    other = write_cohort(tmp_path / "other.parquet", rows[:100])
    with pytest.raises(ValueError, match="is not the index of this cohort"):
        CohortIndex(other, tmp_path / "c.faiss")


def test_a_sheet_has_a_tile_for_each_study(loaded, records, cohort):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from itemized_clip_hf.cohort.sheet import draw_sheet, missing_tile, tile_of

    hits = search_text(cohort, *loaded, TEXT, top=3, candidates=None).hits
    images = {record["id"]: record["images"] for record in records}
    sizes = []
    for text in (TEXT, None):
        tiles = [tile_of(*loaded, images[hit.id], hit, n + 1, text) for n, hit in enumerate(hits[:2])]
        hot = [float(tile.row.heat.max()) for tile in tiles]
        assert (min(hot) > 1) if text else (max(hot) == 0)
        stream = io.BytesIO()
        draw_sheet([*tiles, missing_tile(hits[2], 3, "lost")], TEXT, stream, columns=2)
        sizes.append(Image.open(stream).size)
    assert sizes[0] == sizes[1] and sizes[0][1] > sizes[0][0]  # two rows of two
    assert hits[0].id[:20] in tiles[0].title.replace("\n", "")


def test_scores_are_those_of_the_working_precision(loaded, records, tmp_path):
    embed_cohort(*loaded, records[:4], tmp_path / "c.parquet", EmbedOptions(tokens=True, precision="bf16"))
    own = Cohort(tmp_path / "c.parquet")
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_studies(*loaded, [record["images"] for record in records[:4]], [TEXT])[1][:, 0]
    for hit in search_text(own, *loaded, TEXT).hits:
        assert hit.score == pytest.approx(scores[own.places[hit.id]], abs=1e-2)


def test_pictures(tokenizer, tmp_path):
    """The corner of a picture leads to that corner; classes are kept, and tiles drawn."""
    pytest.importorskip("matplotlib")
    from picture_runs import pictures, processor_of
    from tiny_models import tiny_config

    from itemized_clip_hf import ItemizedCLIPModel
    from itemized_clip_hf.cohort.sheet import draw_sheet, tile_of

    torch.manual_seed(0)
    config = tiny_config(num_channels=3, image_size=[1, 32, 32], patch_size=[1, 8, 8])
    config.domain = "remote-sensing"
    model, processor = ItemizedCLIPModel(config).eval(), processor_of(tokenizer)
    records = [{**record, "label": f"class {n % 2}"} for n, record in enumerate(pictures(6, side=40))]
    embed_cohort(model, processor, records, tmp_path / "c.parquet", EmbedOptions(["airport"], tokens=True))
    own = Cohort(tmp_path / "c.parquet")
    tokens = dict(own.tokens_of([2]))[2]
    assert tokens.values.shape == (1, 1, 4, 4, 16) and tokens.scan_shapes.tolist() == [[1, 40, 40]]
    assert own._column("label").to_pylist() == [f"class {n % 2}" for n in range(6)]
    region = describe_region(tokens, {None: [(0, 8), (28, 40)]})
    hit = search_region(own, region, "a corner", top=1).hits[0]
    assert hit.id == "p2" and hit.voxel is not None and hit.voxel[0] == 0 and hit.voxel[2] >= 20
    found = search_text(own, model, processor, "airport", top=2)
    tiles = [tile_of(model, processor, records[int(hit.id[1:])]["images"], hit, 1, "airport") for hit in found.hits]
    draw_sheet(tiles, "airport", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
