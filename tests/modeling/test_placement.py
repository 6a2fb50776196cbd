"""Weights kept elsewhere, in other types or quantized: every kind of model gives the same results as in memory."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from tiny_models import tiny_config
from torch import nn

from itemized_clip_hf import ItemizedCLIPModel
from itemized_clip_hf.modeling.modeling_itemized_clip import scale_and_bias
from itemized_clip_hf.trainer.objectives import load_objective

KINDS = {
    "pictures": ("clip", {"num_channels": 3, "image_size": [1, 16, 16], "patch_size": [1, 8, 8]}),
    "one scan": ("bert", {"max_num_scans": 1}),
    "several scans": ("bert", {}),
    "scan names": ("bert", {"use_scan_name_encoder": True}),
}
CASES = pytest.mark.parametrize("kind", KINDS)


def build(kind: str):
    text, vision = KINDS[kind]
    torch.manual_seed(0)
    model = ItemizedCLIPModel(tiny_config(text=text, **vision)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("item_pooler.layer_norm"):
                weight.add_(0.3 * torch.randn_like(weight))
    scans = 2 if kind.startswith("s") else 1
    shape = (3, 3, 16, 16) if kind == "pictures" else (3, scans, 1, 8, 16, 16)
    batch = {"pixel_values": torch.randn(shape), "input_ids": torch.randint(1, 100, (3, 2, 10))}
    batch["input_ids"][..., -1] = 119
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if kind == "scan names":
        batch["scan_name_ids"] = torch.randint(1, 40, (3, scans, 6))
        batch["scan_name_ids"][..., -1] = 46
    return model, batch


@torch.no_grad()
def logits(model, batch) -> torch.Tensor:
    return model(**batch).logits_per_image.float()


@CASES
@pytest.mark.parametrize("place", ["cpu_offload", "disk_offload", "device_map"])
def test_weights_kept_elsewhere(kind, place, tmp_path):
    model, batch = build(kind)
    expected = logits(model, batch)
    if place == "device_map":
        model.save_pretrained(tmp_path / "model")
        limits = {"device_map": "auto", "max_memory": {"cpu": 30_000}, "offload_folder": str(tmp_path / "weights")}
        moved = ItemizedCLIPModel.from_pretrained(tmp_path / "model", **limits)
        assert "disk" in moved.hf_device_map.values()
    elif place == "disk_offload":
        moved = disk_offload(copy.deepcopy(model), str(tmp_path), execution_device=torch.device("cpu"))
    else:
        moved = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    assert moved.item_pooler.k_proj.weight.is_meta
    for _ in range(2):
        torch.testing.assert_close(logits(moved, batch), expected, rtol=1e-5, atol=1e-5)


def test_what_is_used_outside_of_forward_is_fetched():
    model, batch = build("several scans")
    moved = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    for own, theirs in zip(scale_and_bias(model), scale_and_bias(moved)):
        assert torch.equal(own, theirs) and own.dtype == torch.float32
    for own, theirs in zip(model.item_pooler.fold_norms(), moved.item_pooler.fold_norms()):
        torch.testing.assert_close(theirs, own)
    assert moved.logit_scale.is_meta and moved.item_pooler.k_proj.weight.is_meta


@pytest.mark.parametrize("formulation", ["plain", "fused"])
def test_loss_of_offloaded_weights(formulation):
    model, batch = build("several scans")
    moved = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
    losses = []
    for one in (model, moved):
        one.loss_function = load_objective("itemized_clip", formulation=formulation)
        torch.manual_seed(3)
        with torch.no_grad():
            losses.append(float(one(**batch, return_loss=True).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_keys_and_values_are_those_of_folded_norms():
    pooler = build("several scans")[0].item_pooler.double()
    tokens = torch.randn(2, 5, 16, dtype=torch.double)
    normed = nn.functional.layer_norm(tokens, (16,), eps=1e-5)
    folded = nn.functional.linear(normed, *pooler.fold_norms()).chunk(2, dim=-1)
    for got, want in zip(pooler.project_tokens(tokens), folded):
        torch.testing.assert_close(got.transpose(1, 2).flatten(2), want)


@CASES
def test_dynamic_quantization(kind):
    model, batch = build(kind)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    assert not isinstance(quantized.item_pooler.k_proj, nn.Linear)
    with torch.no_grad():
        own, theirs = model(**batch), quantized(**batch)
    for name in ("image_embeds", "item_embeds"):
        assert (nn.functional.cosine_similarity(own[name], theirs[name], dim=-1) > 0.98).all(), name
    assert (own.logits_per_image - theirs.logits_per_image).abs().max() < 2


@CASES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_memory_and_offloaded(kind, dtype, tmp_path):
    model, batch = build(kind)
    model.save_pretrained(tmp_path)
    half = ItemizedCLIPModel.from_pretrained(tmp_path, dtype=dtype)
    found = logits(half, batch)
    torch.testing.assert_close(found, logits(model, batch), rtol=0.05, atol=0.3)
    torch.testing.assert_close(logits(cpu_offload(half, execution_device=torch.device("cpu")), batch), found)


@CASES
def test_copies_and_pickles(kind, tmp_path):
    model, batch = build(kind)
    expected = logits(model, batch)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = ItemizedCLIPModel(model.config).eval()
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    torch.save(model, tmp_path / "model.pt")
    whole = torch.load(tmp_path / "model.pt", weights_only=False)
    for other in (fresh, whole, copy.deepcopy(model)):
        assert torch.equal(logits(other, batch), expected)


@CASES
def test_checkpoints_of_activations_change_no_gradient(kind):
    model, batch = build(kind)
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable()
    for one in (model, other):
        one.train()
        torch.manual_seed(1)
        one(**batch).logits_per_image.square().mean().backward()
    for (name, own), theirs in zip(model.named_parameters(), other.parameters()):
        if own.grad is not None:
            torch.testing.assert_close(theirs.grad, own.grad, msg=name)
