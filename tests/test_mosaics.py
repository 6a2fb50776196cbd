"""Mosaics of pictures: what they are made of, whether their truth is true, and figures of a perfect and of a blind model."""

import colorsys
import io
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itemized_clip_hf.evaluation.encode import EncodedStudies
from itemized_clip_hf.evaluation.protocols import load_protocol
from itemized_clip_hf.evaluation.tasks.items import ItemEvaluation

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
mosaics, figures = pytest.importorskip("mosaics"), pytest.importorskip("mosaic_figures")
pictures = pytest.importorskip("mosaic_pictures")
CLASSES = load_protocol("rsicd").classes[:12]
COLORS = [[round(255 * part) for part in colorsys.hsv_to_rgb(number / 12, 1, 0.8)] for number in range(12)]


def write_list(path: Path) -> Path:
    """Five pictures of one color for each of twelve classes, and one of the class without a prompt."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for label, color in [*zip(CLASSES, COLORS), ("playfields", [255, 255, 255])]:
        for number in range(5 if label != "playfields" else 1):
            file = io.BytesIO()
            Image.new("RGB", (60, 60), tuple(color)).save(file, "PNG")
            captions = [f"{label} number {number}", f"here is {label} number {number}"]
            rows.append({"label": label, "image": file.getvalue(), "captions": captions, "id": f"{label}-{number}"})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return pictures.TilePictures.read(write_list(tmp_path_factory.mktemp("flat") / "test.parquet"))


def test_pictures_of_a_list(tiles, tmp_path):
    assert tiles.pixels.shape == (60, 48, 48, 3) and Counter(tiles.classes) == dict.fromkeys(CLASSES, 5)
    kept = pictures.TilePictures.read(write_list(tmp_path / "train.parquet"), keep_ignored=True)
    assert len(kept) == 61 and kept.classes[-1] == "playground"
    with pytest.raises(ValueError, match="as many classes"):
        pictures.TilePictures(tiles.pixels, tiles.captions, ["beach"] * 60)


def test_tiles_fill_a_mosaic_wherever_the_draw_says(tiles):
    counts, corners = Counter(), Counter()
    for number in range(300):
        boxes = pictures.draw_layout(np.random.default_rng(number))
        covered = np.zeros((72, 72), dtype=int)
        for top, left, rows, columns in boxes:
            covered[top : top + rows, left : left + columns] += 1
        assert (covered == 1).all() and not (boxes % 8).any() and boxes[:, 2:].min() >= 24 and boxes[:, 2:].max() <= 40
        counts[len(boxes)] += 1
    assert sorted(counts) == [4, 5, 6, 7, 8, 9]
    drawn = pictures.Mosaics(tiles, 600, seed=1)
    for number in range(600):
        mosaic = drawn.mosaic(number)
        first = mosaic.classes[[tuple(box[:2]) for box in mosaic.boxes.tolist()].index((0, 0))]
        corners[first] += 1
    assert len(corners) == 12 and max(corners.values()) < 2 * 600 / 12


@pytest.mark.parametrize("training", [False, True])
def test_an_item_is_true_of_its_tile_alone(tiles, training):
    drawn = pictures.Mosaics(tiles, 50, seed=0, training=training)
    first_places = Counter()
    for number in range(50):
        mosaic = drawn.mosaic(number)
        assert len(set(mosaic.classes)) == len(mosaic.classes) == len(mosaic.items) == len(set(mosaic.items))
        for name, item, mask in zip(mosaic.classes, mosaic.items, mosaic.masks()):
            assert f"{name} number" in item
            assert (mosaic.picture[mask] == COLORS[CLASSES.index(name)]).all()
            assert not (mosaic.picture[~mask] == COLORS[CLASSES.index(name)]).all(-1).any()
        first_places[tuple(mosaic.boxes[0, :2])] += 1
        example = drawn[number]
        assert example["items"] == mosaic.items and (example["images"] == mosaic.picture).all()
    assert len(first_places) > 5  # the order of the items does not tell their place


def test_a_tile_of_training_is_a_turned_part_of_its_picture():
    pixels = np.zeros((48, 48, 3), dtype=np.uint8)
    pixels[:24, :24, 0], pixels[:24, 24:, 1], pixels[24:, :24, 2] = 200, 200, 200  # red and green above blue and black
    corners = set()
    for number in range(200):
        tile = pictures.show_tile(pixels, (24, 40), np.random.default_rng(number).random(5))
        assert tile.shape == (24, 40, 3)
        corners.add(
            tuple(
                int(tile[row, column].argmax()) if tile[row, column].max() > 100 else 3
                for row, column in ((1, 1), (1, -2), (-2, -2), (-2, 1))
            )
        )
    clockwise = [(0, 1, 3, 2), (1, 3, 2, 0), (3, 2, 0, 1), (2, 0, 1, 3)]
    assert corners == {*clockwise, *(corner[::-1] for corner in clockwise)}
    whole = pictures.show_tile(pixels, (24, 24))
    assert (whole[3, 3], whole[3, -3], whole[-3, 3], whole[-3, -3]) == pytest.approx(
        np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [0, 0, 0]]), abs=3
    )


def test_a_mosaic_depends_on_seed_and_number_alone(tiles):
    one, other = pictures.Mosaics(tiles, 50, seed=3, training=True), pictures.Mosaics(tiles, 9, seed=3, training=True)
    later = one.mosaic(8)
    for number in (8, 2):
        first, second = one.mosaic(number), other.mosaic(number)
        assert first.items == second.items and (first.picture == second.picture).all()
        assert (first.boxes == second.boxes).all()
    assert (later.picture == one.mosaic(8).picture).all()
    assert one.mosaic(0).items != pictures.Mosaics(tiles, 9, seed=4).mosaic(0).items
    with pytest.raises(IndexError):
        other.mosaic(9)


class TokenMap:
    """What the figures ask of a heat map."""

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens[None]

    def touched_tokens(self, mask: np.ndarray) -> np.ndarray:
        return mask.reshape(9, 8, 9, 8).any((1, 3))[None]


def test_a_perfect_map_gets_one_and_a_blind_one_chance(tiles):
    drawn = [pictures.Mosaics(tiles, 80, seed=0).mosaic(number) for number in range(80)]
    perfect = [[TokenMap(mask[::8, ::8].astype(float)) for mask in mosaic.masks()] for mosaic in drawn]
    found = figures.localize(perfect, drawn)
    for name in ("pointing game", "energy in tile", "item swap"):
        assert (found[name] == 1).all()
    assert found["chance"] == pytest.approx([1 / len(mosaic.items) for mosaic in drawn])
    random = np.random.default_rng(0)
    blind = [[TokenMap(random.random((9, 9))) for _ in mosaic.items] for mosaic in drawn]
    found = figures.localize(blind, drawn)
    assert found["pointing game"].mean() == pytest.approx(found["chance"].mean(), abs=0.06)
    assert found["energy in tile"].mean() == pytest.approx(found["chance"].mean(), abs=0.02)
    assert found["item swap"].mean() == pytest.approx(0.5, abs=0.06)
    exchanged = [[own[-1], *own[:-1]] for own in perfect]
    assert not figures.localize(exchanged, drawn)["pointing game"].any()


def test_class_scores_and_retrieval_of_a_perfect_and_a_blind_model(tiles):
    drawn = [pictures.Mosaics(tiles, 120, seed=0).mosaic(number) for number in range(120)]
    names, truth = figures.classes_of(drawn)
    assert [set(np.array(names)[row]) for row in truth] == [set(mosaic.classes) for mosaic in drawn]
    random = np.random.default_rng(0)
    assert figures.mean_auc(truth, truth.astype(float)) == 1
    assert figures.mean_auc(truth, random.random(truth.shape)) == pytest.approx(0.5, abs=0.06)
    texts = sorted({text for mosaic in drawn for text in mosaic.items})
    own = np.array([[text in mosaic.items for text in texts] for mosaic in drawn], dtype=float)
    items = [mosaic.items for mosaic in drawn]
    found = figures.retrieval(ItemEvaluation(items, texts, own, np.full(len(items), np.nan)))
    assert "mAMS" not in found and found["COMPLETE@10"].mean() == found["I2T@10"].mean() == 1
    assert all(len(values) == len(drawn) for values in found.values())
    blind = figures.retrieval(ItemEvaluation(items, texts, random.random(own.shape), np.full(len(items), np.nan)))
    assert blind["mean rank"].mean() == pytest.approx(len(texts) / 2, rel=0.1)


def test_the_hottest_token_is_looked_up_in_its_tile(tiles, monkeypatch):
    drawn = [pictures.Mosaics(tiles, 20, seed=0).mosaic(number) for number in range(20)]
    one_hot = torch.eye(len(CLASSES))

    def tokens_of(mosaic, shift: int) -> torch.Tensor:
        tokens = torch.zeros(9, 9, len(CLASSES))
        for name, (top, left, rows, columns) in zip(mosaic.classes, mosaic.boxes // 8):
            tokens[top : top + rows, left : left + columns] = one_hot[CLASSES.index(name)]
        return tokens.roll(shift, 1).flatten(0, 1)

    def encode_texts(model, processor, texts):
        return one_hot[[next(n for n, name in enumerate(CLASSES) if f"{name} number" in text) for text in texts]]

    monkeypatch.setattr(figures, "encode_texts", encode_texts)
    for shift, expected in ((0, 1.0), (4, 0.0)):
        tokens = torch.stack([tokens_of(mosaic, shift) for mosaic in drawn])
        batch = EncodedStudies(list(range(20)), tokens[:, 0], tokens, None)
        monkeypatch.setattr(figures, "encode_studies", lambda *_, batch=batch: iter([batch]))
        found = figures.point_by_tokens(None, None, drawn)
        assert (found == expected).all() if shift == 0 else found.mean() < 0.3


def test_differences_are_paired_by_seed_and_mosaic():
    random = np.random.default_rng(0)
    truth = random.random((60, 4)) < 0.4
    arms: dict = {"itemized_clip": {}, "clip": {}}
    for seed, level in ((0, 0.2), (1, 0.8)):
        run = {"scores": random.random((60, 4)) + truth * level, "pointing game": random.random(60) + level}
        arms["itemized_clip"][seed] = run
        arms["clip"][seed] = {"scores": run["scores"], "pointing game": run["pointing game"] - 0.1}
    found = figures.summarize(arms, truth, "itemized_clip", resamples=200)
    change = found["clip"]["pointing game"]["difference"]
    assert change == {"value": -0.1, "low": -0.1, "high": -0.1}  # the seeds and mosaics of both arms are the same ones
    own = found["itemized_clip"]["pointing game"]
    assert own["high"] - own["low"] > 0.3  # that of the seeds, which are far apart
    assert found["clip"][figures.AUC]["difference"] == {"value": 0, "low": 0, "high": 0}
    aucs = [
        np.mean([figures.auroc(truth[:, c], run["scores"][:, c]) for c in range(4)]) for run in arms["clip"].values()
    ]
    assert found["clip"][figures.AUC]["value"] == pytest.approx(np.mean(aucs), abs=1e-4)
    assert "difference" not in own and "item swap" not in found["clip"]


def test_all_variants_have_the_same_budget():
    for name in mosaics.variants():
        recipe = mosaics.recipe_of(name, 400, 2, 0.008)
        training = recipe.training
        assert training["max_steps"] == 400 and recipe.global_batch_size == 32 and training["seed"] == 2
        assert training["muon_learning_rate"] == 0.008 and training["learning_rate"] == pytest.approx(0.0014)
        assert training["max_items"] == 9 and training["diverse_sampling"] is None
    weights = mosaics.recipe_of("itemized_clip, without IIS", 400, 1, 0.004).training["objective_weights"]
    assert weights["iis_weight"] == 0 and weights["kta_weight"] == 1.5 and weights["mps_weight"] == 2
    assert "objective_weights" not in mosaics.recipe_of("clip", 400, 1, 0.004).training
    grid = {"itemized_clip": {"0.002": 0.7, "0.004": 0.9, "0.008": 0.8}}
    assert mosaics.rate_of("itemized_clip, without IIS", grid) == 0.004
    with pytest.raises(SystemExit, match="run --grid first"):
        mosaics.rate_of("clip", grid)


def test_table_of_the_documentation():
    results = mosaics.RESULTS / "mosaics.json"
    if not results.exists():
        pytest.skip("the mosaics were not measured")
    text = mosaics.DOCS.read_text().split(mosaics.DOC_MARK + "\n")[1].split("\n<!-- end of table -->")[0]
    assert text.split("\n") == mosaics.table_rows(json.loads(results.read_text()))


@pytest.mark.slow
def test_a_run_from_pictures_to_the_table(tmp_path, monkeypatch):
    data, output = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    for name in ("train-0", "val", "test"):
        write_list(data / f"{name}.parquet")
    monkeypatch.setattr(mosaics, "TEST_MOSAICS", 12)
    monkeypatch.setattr(mosaics, "VAL_MOSAICS", 12)
    for name in ("itemized_clip", "clip"):
        (output / f"{name}-0").mkdir(parents=True)
        command = f"x --data {data} -o {output} --one {name} --rate 0.004 --seeds 0 --steps 4 --batch 4".split()
        monkeypatch.setattr(sys, "argv", command)
        mosaics.main()
    monkeypatch.setattr(sys, "argv", f"x --data {data} -o {output} --table --results {tmp_path / 'm.json'}".split())
    mosaics.main()
    document = json.loads((tmp_path / "m.json").read_text())
    assert list(document["variants"]) == ["itemized_clip", "clip"] and document["steps"] == 4
    assert "pointing game" not in document["variants"]["clip"]
    assert {"mAMS", "item swap"} <= set(document["variants"]["itemized_clip"])
    assert document["variants"]["clip"]["token pointing"]["difference"] and (tmp_path / "m-curves.png").exists()
    result = output / "clip-0" / "result.json"
    changed = json.loads(result.read_text())
    changed["recipe"]["model"]["logit_bias_init_value"] = -1
    result.write_text(json.dumps(changed))
    with pytest.raises(SystemExit, match="several lengths, batches or models"):
        mosaics.main()
    monkeypatch.setattr(sys, "argv", f"x --data {data} -o {output} --maps {tmp_path / 'maps.png'}".split())
    mosaics.main()
    assert (tmp_path / "maps.png").stat().st_size > 10000
