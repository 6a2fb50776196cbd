"""Cohorts hold what the model gives, however often the run that writes them is stopped."""

import json
import os
import random

import numpy as np
import pytest
import torch
from cohorts import PROMPTS, phantom_records

pq = pytest.importorskip("pyarrow.parquet")

from itemized_clip_hf.cohort import embed, file
from itemized_clip_hf.cohort.embed import EmbedOptions, embed_cohort
from itemized_clip_hf.cohort.file import Cohort, CohortFacts
from itemized_clip_hf.evaluation.encode import encode_studies
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.models.load import load

OPTIONS = EmbedOptions(PROMPTS, tokens=True, batch_size=3)


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load(model_folder, "cpu")


@pytest.fixture(scope="module")
def records():
    return phantom_records()


@pytest.fixture(scope="module")
def whole(loaded, records, tmp_path_factory):
    """An undisturbed cohort, a study at a time, so that its numbers depend on nothing else."""
    path = tmp_path_factory.mktemp("cohort") / "cohort.parquet"
    done = embed_cohort(*loaded, records, path, EmbedOptions(PROMPTS, True, batch_size=1))
    assert done.studies == 7 and not done.errors and sorted(p.name for p in path.parent.iterdir()) == [path.name]
    return path


def test_rows_are_what_the_model_gives(loaded, records, whole):
    model, processor = loaded
    cohort = Cohort(whole)
    images = [record["images"] for record in records]
    encoded = list(encode_studies(model, processor, images, batch_size=7))[0]
    np.testing.assert_allclose(cohort.embeddings, encoded.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(cohort.directions, axis=1), 1, atol=1e-6)
    labels, scores = score_studies(model, processor, images, PROMPTS)
    assert labels == list(cohort.facts.prompts) and cohort.ids == [record["id"] for record in records]
    np.testing.assert_allclose(cohort.scores, scores, atol=1e-5)
    for place, tokens in cohort.tokens_of(range(7)):
        count = len(tokens.flat)
        np.testing.assert_allclose(tokens.flat, encoded.tokens[place, :count].numpy(), atol=2e-3, rtol=2e-3)
        assert tokens.values.shape[:1] == (len(images[place]),) and tokens.scan_names == list(images[place])
        assert (tokens.scan_shapes == [8, 16, 16]).all()
        corner = tokens.to_voxel[0] @ [0, 0, 0, 1]  # the center of the first patch, 4 x 8 x 8 voxels of the model's own
        assert ((corner[:3] > 0) & (corner[:3] < [8, 16, 16])).all()


def test_scores_are_those_of_the_item_embeddings(loaded, whole):
    from itemized_clip_hf.evaluation.encode import encode_prompts

    cohort = Cohort(whole)
    prompt_embeds = encode_prompts(*loaded, PROMPTS)[1].numpy()
    for number, label in enumerate(PROMPTS):
        pooled, text = cohort.item_embeddings(label), prompt_embeds[number]
        cosine = pooled @ text / np.linalg.norm(pooled, axis=1) / np.linalg.norm(text)
        np.testing.assert_allclose(cosine, cohort.scores[:, number], atol=1e-5)
    with pytest.raises(ValueError, match="no item embeddings of 'cyst'"):
        cohort.item_embeddings("cyst")


def test_datasets_and_pandas_read_it(whole, records, tmp_path):
    datasets, pandas = pytest.importorskip("datasets"), pytest.importorskip("pandas")
    cohort = Cohort(whole)
    frame = pandas.read_parquet(whole)
    dataset = datasets.Dataset.from_parquet(str(whole), cache_dir=str(tmp_path)).with_format("numpy")
    tokens = dict(cohort.tokens_of([3]))[3]
    for row in (frame.iloc[3], dataset[3]):
        assert row["id"] == records[3]["id"] and row["scores"]["mass"] == pytest.approx(cohort.scores[3, 0])
        np.testing.assert_array_equal(np.asarray(row["embedding"], np.float32), cohort.embeddings[3])
        own = np.asarray(row["tokens"]).reshape(np.asarray(row["token_shape"]))
        np.testing.assert_array_equal(own.astype(np.float16), tokens.values)
    assert frame["tokens"][0].dtype == np.float16 and dataset.features["tokens"].feature.dtype == "float16"
    assert frame["labels"][0]["mass"] is None and frame["labels"][1]["cyst"] is None
    for number in range(2, 7):
        assert frame["labels"][number] == records[number]["labels"]
    assert cohort.labels["bleed"] == [record["labels"]["bleed"] for record in records]
    assert "label" not in frame


def test_runs_that_are_stopped_lose_nothing(loaded, records, whole, tmp_path, monkeypatch):
    """Stopped at random places, also between the files of a run: the file is the undisturbed one, byte for byte."""
    monkeypatch.setattr(embed, "SHARD_SIZE", 2)
    rng, stops, original = random.Random(0), 0, os.replace

    def maybe_stop():
        if rng.random() < 0.25:
            raise KeyboardInterrupt

    def open_images(record):
        maybe_stop()
        return record["images"]

    def replace(source, target):
        maybe_stop()
        original(source, target)
        maybe_stop()

    monkeypatch.setattr("itemized_clip_hf.data.files.os.replace", replace)
    for number in range(3):
        path = tmp_path / str(number) / "cohort.parquet"
        while True:
            try:
                options = EmbedOptions(PROMPTS, True, batch_size=1)
                embed_cohort(*loaded, records, path, options, open_images=open_images)
                break
            except KeyboardInterrupt:
                stops += 1
        assert path.read_bytes() == whole.read_bytes() and [p.name for p in path.parent.iterdir()] == [path.name]
    assert stops >= 5


def test_bad_studies_are_listed_and_tried_again(loaded, records, whole, tmp_path):
    path, reasons = tmp_path / "cohort.parquet", []
    bad = [dict(record) for record in records]
    bad[2]["images"] = str(tmp_path / "lost.nii.gz")
    bad[6].pop("images")
    options = EmbedOptions(PROMPTS, True, batch_size=1)
    done = embed_cohort(*loaded, bad, path, options, on_error=lambda study, error: reasons.append(study))
    assert done.studies == 5 and list(done.errors) == reasons == [records[2]["id"], records[6]["id"]]
    listed = path.with_name("cohort.parquet.quarantine.csv").read_text().splitlines()
    assert listed[0] == "study,reason" and len(listed) == 3 and listed[2].endswith("the study has no images.")
    assert Cohort(path).ids == [record["id"] for n, record in enumerate(records) if n not in (2, 6)]
    mended = embed_cohort(*loaded, records, path, options)  # mended: both come in at their places
    assert mended.studies == 7 and not mended.errors
    assert path.read_bytes() == whole.read_bytes() and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_scans_that_are_left_out_are_counted(loaded, records, tmp_path):
    own = [{**records[0], "images": {**records[0]["images"], "lost": torch.zeros(2, 2)}}]
    lost = []
    embed_cohort(*loaded, own, tmp_path / "c.parquet", on_bad_scan=lambda study, scan, error: lost.append(scan))
    row = pq.read_table(tmp_path / "c.parquet").to_pylist()[0]
    assert lost == ["lost"] and (row["scans"], row["scans_left_out"]) == (4, 1)
    assert set(row) == {"id", "embedding", "scans", "scans_left_out", "labels"}


def test_another_cohort_is_not_overwritten(loaded, records, whole, tmp_path):
    path = tmp_path / "cohort.parquet"
    path.write_bytes(whole.read_bytes())
    for studies, options in ((records, EmbedOptions(PROMPTS)), (records[:3], OPTIONS)):
        with pytest.raises(ValueError, match="is a cohort of another model, of other prompts"):
            embed_cohort(*loaded, studies, path, options)
    assert path.read_bytes() == whole.read_bytes()
    done = embed_cohort(*loaded, records[:2], path, EmbedOptions(["a mass"], overwrite=True))
    assert done.studies == 2 and list(Cohort(path).facts.prompts) == ["a mass"] and not Cohort(path).facts.tokens
    with pytest.raises(ValueError, match="holds no local tokens"):
        next(Cohort(path).tokens_of([0]))


def test_the_beginning_of_another_cohort_is_refused(loaded, records, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "SHARD_SECONDS", -1.0)  # each batch is written at once

    def stop(record):
        if record["id"] == records[1]["id"]:
            raise KeyboardInterrupt
        return record["images"]

    with pytest.raises(KeyboardInterrupt):
        embed_cohort(*loaded, records, tmp_path / "c.parquet", EmbedOptions(batch_size=1), open_images=stop)
    assert not (tmp_path / "c.parquet").exists()
    with pytest.raises(ValueError, match=r"c.parquet.parts is the beginning of a cohort of another"):
        embed_cohort(*loaded, records[:2], tmp_path / "c.parquet")
    assert embed_cohort(*loaded, records[:2], tmp_path / "c.parquet", EmbedOptions(overwrite=True)).studies == 2


def test_what_is_no_cohort(loaded, records, whole, tmp_path):
    import pandas

    pandas.DataFrame({"id": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is no cohort"):
        Cohort(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("id")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        Cohort(tmp_path / "text.parquet")
    with pytest.raises(FileNotFoundError, match="there is no cohort"):
        Cohort(tmp_path / "none.parquet")
    stored = json.loads(CohortFacts.read(whole).metadata()[file.KEY]) | {"format": 2}
    table = pq.read_table(whole).replace_schema_metadata({file.KEY: json.dumps(stored)})
    pq.write_table(table, tmp_path / "later.parquet")
    with pytest.raises(ValueError, match="has format 2, this version reads up to 1"):
        Cohort(tmp_path / "later.parquet")
    with pytest.raises(ValueError, match="duplicate ids"):
        embed_cohort(*loaded, [*records, records[0]], tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="none of the 1 studies could be embedded"):
        embed_cohort(*loaded, [{"id": "a"}], tmp_path / "c.parquet")


def test_a_model_that_is_scored_globally_has_no_item_embeddings(make_model, processor, records, tmp_path):
    model = make_model()
    model.config.scoring = "global"
    embed_cohort(model, processor, records, tmp_path / "c.parquet", EmbedOptions(PROMPTS))
    cohort = Cohort(tmp_path / "c.parquet")
    scores = score_studies(model, processor, [record["images"] for record in records], PROMPTS)[1]
    np.testing.assert_allclose(cohort.scores, scores, atol=1e-5)
    with pytest.raises(ValueError, match="no item embeddings"):
        cohort.item_embeddings("mass")


def test_damaged_weights_are_told(make_model, processor, records, tmp_path):
    model = make_model()
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="none of the 7 studies"):
        embed_cohort(model, processor, records, tmp_path / "c.parquet")
    assert "not finite" in (tmp_path / "c.parquet.quarantine.csv").read_text()
