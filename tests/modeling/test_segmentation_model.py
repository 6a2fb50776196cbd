"""The model that draws masks: what guides it, what its loss counts, and how it comes from a model without a decoder."""

import os
import subprocess
import sys

import pytest
import torch
from tiny_models import ITEMS, random_study, tiny_config
from torch.nn import functional as F

pytest.importorskip("monai")

from itemized_clip_hf import ItemizedCLIPForSemanticSegmentation, ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.explain.attribution import contributions
from itemized_clip_hf.modeling import mask_decoder_itemized_clip
from itemized_clip_hf.modeling.mask_decoder_itemized_clip import item_maps, mask_loss, upsampling_steps
from itemized_clip_hf.modeling.segmentation_itemized_clip import IGNORE

PICTURES = {"image_size": [1, 32, 32], "patch_size": [1, 8, 8], "num_channels": 3}


def build(seed=0, mode="items", num_labels=3, **vision):
    torch.manual_seed(seed)
    config = tiny_config(**vision)
    config.mask_decoder = {"mode": mode, "channels": 4}
    config.num_labels = num_labels
    return ItemizedCLIPForSemanticSegmentation(config).eval()


@pytest.mark.parametrize("patch", [(4, 8, 8), (8, 16, 16), (8, 24, 24), (1, 16, 16), (1, 14, 14), (2, 5, 7), (1, 1, 1)])
def test_any_patch_is_reached_in_steps(patch):
    steps = upsampling_steps(patch)
    assert [max(1, torch.tensor([1, *(step[axis] for step in steps)]).prod().item()) for axis in range(3)] == list(
        patch
    )


@pytest.mark.parametrize(
    "patch, size", [((4, 8, 8), (8, 16, 16)), ((8, 24, 24), (16, 48, 48)), ((2, 5, 7), (4, 10, 14))]
)
def test_masks_have_the_size_of_the_scans(patch, size):
    model = build(image_size=list(size), patch_size=list(patch))
    study = {**random_study(model), "pixel_values": torch.randn(1, 2, 1, *size)}
    with torch.no_grad():
        assert model(**study).logits.shape == (1, 2, 3, *size)


def test_terms_are_those_of_the_attribution():
    model = build()
    torch.manual_seed(1)
    items, tokens = torch.randn(2, 3, 16), torch.randn(2, 12, 16)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 8:] = False
    maps, scores = item_maps(model.item_pooler, items, tokens, mask)
    terms, bias = contributions(model.item_pooler, items, tokens, mask[:, None, None])
    terms = terms * mask[:, None]
    count = mask.sum(1)[:, None, None]
    torch.testing.assert_close(maps[..., 1].sinh() / count, terms, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(scores, terms.sum(-1) + bias, atol=1e-6, rtol=1e-4)
    attention = model.item_pooler(items, tokens, mask[:, None, None], output_attentions=True)[1]
    torch.testing.assert_close(maps[..., 0].exp(), (attention * count).clamp(min=0.01), atol=1e-6, rtol=1e-4)
    assert (maps[1, :, 8:, 1:3] == 0).all(), "tokens of padded scans say nothing"


def test_a_model_without_decoder_fills_all_but_the_decoder(tmp_path, make_model):
    base = make_model(seed=3)
    base.save_pretrained(tmp_path / "base")
    model = ItemizedCLIPForSemanticSegmentation.from_pretrained(tmp_path / "base").eval()
    own = model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in base.state_dict().items())
    assert all(torch.isfinite(value).all() for value in own.values())
    fresh = [module for module in model.mask_decoder.modules() if isinstance(module, torch.nn.ConvTranspose3d)]
    assert all(0 < float(module.weight.detach().abs().max()) <= module.init_bound for module in fresh)
    model.save_pretrained(tmp_path / "masks")
    again = ItemizedCLIPForSemanticSegmentation.from_pretrained(tmp_path / "masks").eval()
    study = random_study(base)
    with torch.no_grad():
        assert torch.equal(again(**study).logits, model(**study).logits)
        restored = ItemizedCLIPModel.from_pretrained(tmp_path / "masks").eval()
        assert torch.equal(restored(**study).logits_per_image, base(**study).logits_per_image)


def test_padding_changes_nothing():
    model = build()
    study = random_study(model)
    padded = {
        "pixel_values": F.pad(study["pixel_values"], (0, 0) * 4 + (0, 1), value=9.0),
        "scan_mask": F.pad(study["scan_mask"], (0, 1)),
        "scan_name_ids": F.pad(study["scan_name_ids"], (0, 0, 0, 1), value=1),
        "input_ids": F.pad(study["input_ids"], (0, 0, 0, 1), value=5),
        "attention_mask": F.pad(study["attention_mask"], (0, 0, 0, 1), value=1),
        "item_mask": F.pad(study["item_mask"], (0, 1)),
    }
    with torch.no_grad():
        logits, wider = model(**study).logits, model(**padded).logits
    torch.testing.assert_close(wider[:, :2, :3], logits, atol=1e-5, rtol=1e-4)
    lowest = torch.finfo(logits.dtype).min
    assert (wider[:, 2] == lowest).all() and (wider[:, :, 3] == lowest).all()


def test_prompts_of_all_studies_are_those_of_each():
    model = build()
    one, two = random_study(model, 1), random_study(model, 2)
    scans = {name: torch.cat([one[name], two[name]]) for name in ("pixel_values", "scan_name_ids", "scan_mask")}
    with torch.no_grad():
        shared = model(**scans, input_ids=one["input_ids"][0], attention_mask=one["attention_mask"][0]).logits
        for number, study in enumerate((one, two)):
            alone = model(**{**study, "input_ids": one["input_ids"]}).logits[0]
            torch.testing.assert_close(shared[number], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["items", "classes"])
def test_masks_do_not_depend_on_how_many_are_drawn_at_once(mode, monkeypatch):
    model = build(mode=mode)
    study = random_study(model, scans=3)
    inputs = (
        study if mode == "items" else {name: study[name] for name in ("pixel_values", "scan_mask", "scan_name_ids")}
    )
    found = []
    with torch.no_grad():
        for rows in (1, 2, 4, 100):
            monkeypatch.setattr(mask_decoder_itemized_clip, "ROWS_AT_ONCE", rows)
            found.append(model(**inputs).logits)
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], atol=1e-5, rtol=1e-4)


def test_the_loss_is_monais_over_what_is_known():
    from monai.losses import DiceCELoss

    torch.manual_seed(0)
    logits = torch.randn(3, 1, 2, 4, 4)
    labels = torch.randint(0, 2, (3, 2, 4, 4))
    reference = DiceCELoss(sigmoid=True)
    torch.testing.assert_close(mask_loss(logits, labels, IGNORE, False), reference(logits, labels[:, None].float()))
    unknown = labels.clone()
    unknown[2] = IGNORE  # a mask that nobody drew
    known = reference(logits[:2], labels[:2, None].float())
    torch.testing.assert_close(mask_loss(logits, unknown, IGNORE, False), known)
    part = labels.clone()
    part[:, :, 2:] = IGNORE  # outside of the field of the masks
    dice = DiceCELoss(sigmoid=True, lambda_ce=0)(logits[..., :2, :], labels[:, None, :, :2].float())
    entropy = F.binary_cross_entropy_with_logits(logits[..., :2, :], labels[:, None, :, :2].float()) / 2
    torch.testing.assert_close(mask_loss(logits, part, IGNORE, False), dice + entropy, atol=1e-4, rtol=1e-4)
    assert mask_loss(logits.requires_grad_(), torch.full_like(labels, IGNORE), IGNORE, False).item() == 0


def test_scans_without_truth_are_not_drawn_in_training_and_count_nothing():
    model = build()
    model.mask_decoder.settings = type(model.mask_decoder.settings)(channels=4, item_dropout=0.0)
    study = random_study(model)
    labels = torch.randint(0, 2, (1, 2, 3, 8, 16, 16))
    labels[:, 1] = IGNORE
    drawn = model.train()(**study, labels=labels)
    assert (drawn.logits[:, 1] == torch.finfo(torch.float32).min).all()
    whole = model.eval()(**study, labels=labels)
    torch.testing.assert_close(drawn.loss, whole.loss)
    torch.testing.assert_close(drawn.logits[:, 0], whole.logits[:, 0])


@pytest.mark.parametrize("wide", [False, True])
def test_pictures(wide):
    model = build(**PICTURES)
    pixels = torch.randn(2, 3, 32, 32)
    items = {"input_ids": torch.randint(5, 100, (2, 2, 6))}
    with torch.no_grad():
        flat = model(pixel_values=pixels, **items, labels=torch.zeros(2, 2, 32, 32)).logits
        logits = model(pixel_values=pixels[:, None, :, None], **items).logits if wide else flat
    assert flat.shape == (2, 2, 32, 32)
    torch.testing.assert_close(logits.reshape(flat.shape), flat)


@pytest.mark.parametrize("vision", [{}, PICTURES])
def test_classes(vision):
    model = build(mode="classes", **vision)
    pixels = torch.randn(2, 3, 32, 32) if vision else torch.randn(2, 2, 1, 8, 16, 16)
    shape = (2, 32, 32) if vision else (2, 2, 8, 16, 16)
    labels = torch.randint(0, 3, shape)
    found = model.train()(pixel_values=pixels, labels=labels)
    assert found.logits.shape == ((2, 3, 32, 32) if vision else (2, 2, 3, 8, 16, 16))
    found.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    ids = {"input_ids": torch.randint(5, 100, (2, 2, 6))}
    with pytest.raises(ValueError, match="takes no items"):
        model(pixel_values=pixels, **ids)
    with pytest.raises(ValueError, match=r"expected \(2"):
        model.eval()(pixel_values=pixels, labels=labels[:, :1])


def test_what_is_refused(monkeypatch):
    model = build()
    with pytest.raises(ValueError, match="needs items"):
        model(pixel_values=torch.randn(1, 2, 1, 8, 16, 16))
    for entry, told in (
        ({"mode": "boxes"}, "mode is 'boxes'"),
        ({"channels": 6}, "channels is 6"),
        ({"chanels": 8}, "expected a dictionary with some of"),
        ({"item_dropout": 2}, "item_dropout is 2"),
        (["items"], "expected a dictionary"),
    ):
        config = tiny_config()
        config.mask_decoder = entry
        with pytest.raises(ValueError, match=told):
            ItemizedCLIPForSemanticSegmentation(config)
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(ImportError, match=r"itemized-clip-hf\[monai\]"):
        ItemizedCLIPForSemanticSegmentation(tiny_config())


def test_dropped_patches_are_switched_off(messages):
    model = build(patch_dropout=0.5).train()
    assert model.config.vision.patch_dropout == 0 and any("patch_dropout" in message for message in messages)
    study = random_study(model)
    assert model(**study, labels=torch.zeros(1, 2, 3, 8, 16, 16)).logits.shape == (1, 2, 3, 8, 16, 16)


SCRIPT = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "itemized_clip_hf":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModelForSemanticSegmentation, AutoProcessor
folder = sys.argv[1]
scans, items, expected = torch.load(folder + "/expected.pt")
for source in (folder, folder + "/again"):
    model = AutoModelForSemanticSegmentation.from_pretrained(source, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    inputs = processor(images=scans, text=items, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected)
    model.save_pretrained(folder + "/again")
    processor.save_pretrained(folder + "/again")
print("ok")
"""


@pytest.mark.slow  # MONAI is imported in another process
def test_round_trip_without_the_package(tmp_path, tokenizer):
    model = build()
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    scans = {"AX_T1": torch.randn(6, 20, 18), "AX_T2": torch.randn(6, 20, 18)}
    with torch.no_grad():
        expected = model(**processor(images=scans, text=[ITEMS], return_tensors="pt")).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save((scans, [ITEMS], expected), tmp_path / "expected.pt")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("ok"), done.stderr[-3000:]
