"""Retrieval from files to figures, full, accelerated and global scores against plain loops."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ITEMS, tiny_config

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.evaluation.encode import encode_studies, encode_texts
from itemized_clip_hf.evaluation.tasks.retrieval import (
    CaptionedImages,
    evaluate_retrieval,
    read_captions,
    score_pairs,
)
from itemized_clip_hf.evaluation.zero_shot import score_top


@pytest.fixture(scope="module")
def ready():
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    torch.manual_seed(0)
    config = tiny_config(image_size=[1, 32, 32], patch_size=[1, 8, 8], num_channels=3)
    model = ItemizedCLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    processor = ItemizedCLIPProcessor.from_domain(
        "natural-images", tokenizer=train_tokenizer(ITEMS, 120, 24), scan_size=[1, 32, 32]
    )
    return model, processor


def pictures(count, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)) for _ in range(count)]


def captions(count):
    words = ("left", "right", "frontal", "parietal", "small", "lobe", "enlarged")
    return [[f"{words[i]} {words[(i + k) % 7]} {words[3 * k % 7]}" for k in range(1 + i % 3)] for i in range(count)]


def test_every_pair_by_itself(ready):
    model, processor = ready
    data = CaptionedImages(pictures(5), captions(5))
    texts = [text for own in data.captions for text in own]
    full = score_pairs(model, processor, data, "full", batch_size=2)
    world = score_pairs(model, processor, data, "global", batch_size=3)
    assert full.shape == world.shape == (5, len(texts))
    with torch.no_grad():
        for i, picture in enumerate(data.images):
            for j, text in enumerate(texts):
                out = model(**processor(images=[picture], text=[[text]], return_tensors="pt"))
                embed = out.item_embeds[0, 0]
                pooled = model.item_pooler(embed[None, None], out.image_tokens)[0, 0]
                assert full[i, j] == pytest.approx(torch.cosine_similarity(pooled, embed, dim=0).item(), abs=2e-5)
                assert world[i, j] == pytest.approx(
                    torch.cosine_similarity(out.image_embeds[0], embed, dim=0).item(), abs=2e-5
                )


def test_accelerated_scores(ready):
    model, processor = ready
    data = CaptionedImages(pictures(4), captions(4))
    full, world = (score_pairs(model, processor, data, mode) for mode in ("full", "global"))
    fast = score_pairs(model, processor, data, "accelerated", top_k=3)
    for row in range(4):
        kept = set(np.argsort(-world[row], kind="stable")[:3].tolist())
        for column in range(full.shape[1]):
            expected = full[row, column] if column in kept else -1e10
            assert fast[row, column] == pytest.approx(expected, abs=2e-5)
    every = score_pairs(model, processor, data, "accelerated", top_k=10_000)
    np.testing.assert_allclose(every, full, atol=2e-5)
    bad = CaptionedImages([data.images[0], "missing.jpg", *data.images[2:]], data.captions)
    lost = []
    rows = score_pairs(model, processor, bad, on_error=lambda number, error: lost.append(number))
    assert lost == [1] and np.isnan(rows[1]).all()
    np.testing.assert_allclose(rows[[0, 2, 3]], full[[0, 2, 3]], atol=2e-5)
    with pytest.raises(ValueError, match="expected one of"):
        score_pairs(model, processor, data, "quick")


def test_two_stages_for_a_bank(ready):
    model, processor = ready
    bank = [text for own in captions(7) for text in own]
    embeds = encode_texts(model, processor, bank)
    (encoded,) = encode_studies(model, processor, pictures(3), 8)
    places, scores = score_top(model, embeds, encoded, 6)
    for row in range(3):
        cosines = torch.cosine_similarity(encoded.image_embeds[row][None], embeds, dim=-1)
        assert set(places[row].tolist()) == set(cosines.topk(6).indices.tolist())
        unit = torch.nn.functional.normalize
        for place, score in zip(places[row], scores[row]):
            query = unit(embeds[place], dim=0)
            pooled = model.item_pooler(query[None, None], unit(encoded.tokens[row], dim=-1)[None])[0, 0]
            assert score == pytest.approx(torch.cosine_similarity(pooled, query, dim=0).item(), abs=2e-5)


def test_figures(ready):
    model, processor = ready
    data = CaptionedImages(pictures(6), captions(6))
    found = evaluate_retrieval(model, processor, data, resamples=200)
    scores = score_pairs(model, processor, data)
    owner = [i for i, own in enumerate(data.captions) for _ in own]
    t2i = [1 + sum(scores[:, j] > scores[owner[j], j]) for j in range(len(owner))]
    i2t = [1 + min(sum(scores[i] > scores[i, j]) for j in range(len(owner)) if owner[j] == i) for i in range(6)]
    for name, ranks in (("text_to_image", t2i), ("image_to_text", i2t)):
        assert found[name]["R@1"].value == pytest.approx(np.mean(np.array(ranks) <= 1))
        assert found[name]["mean_rank"].value == pytest.approx(np.mean(ranks))
        assert found[name]["median_rank"].value == np.median(ranks)
        assert found[name]["R@5"].low <= found[name]["R@5"].value <= found[name]["R@5"].high


def test_files(tmp_path):
    for number, picture in enumerate(pictures(3)):
        picture.save(tmp_path / f"{number}.jpg")
    coco = {
        "images": [{"id": 10 + n, "file_name": f"{n}.jpg"} for n in range(3)],
        "annotations": [{"image_id": 10 + n, "caption": f"caption {n}{k}"} for n in (0, 2) for k in range(2)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    data = read_captions(tmp_path / "coco.json")
    assert data.captions == [["caption 00", "caption 01"], ["caption 20", "caption 21"]]
    assert [image.rsplit("/", 1)[1] for image in data.images] == ["0.jpg", "2.jpg"]
    flickr = {
        "images": [
            {"filename": f"{n}.jpg", "split": "test" if n else "train", "sentences": [{"raw": f"text {n}"}]}
            for n in range(3)
        ]
    }
    (tmp_path / "flickr.json").write_text(json.dumps(flickr))
    assert read_captions(tmp_path / "flickr.json", split="test").captions == [["text 1"], ["text 2"]]
    with pytest.raises(ValueError, match=r"no image of the split 'val'; splits: \['test', 'train'\]"):
        read_captions(tmp_path / "flickr.json", split="val")
    rows = [{"image": f"{n}.jpg", "captions": ["a", "b"]} for n in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read_captions(tmp_path / "list.jsonl")
    assert data.captions == [["a", "b"]] * 3 and str(data.images[1]).endswith("1.jpg")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="other.json is empty"):
        read_captions(tmp_path / "other.json")
    coco["annotations"].append({"image_id": 99, "caption": "x"})
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="image 99, which is not there"):
        read_captions(tmp_path / "coco.json")
