"""Patches left out in training, and attention in half precision on CPUs."""

import pytest
import torch
from tiny_models import random_study


def test_patch_dropout_keeps_some_of_every_slice(make_model):
    model = make_model(attention_scopes=["slice", "scan", "study"], max_num_scans=3, patch_dropout=0.4)
    embeddings, inputs = model.vision_model.embeddings, random_study(model)
    scans = inputs["pixel_values"]
    whole, (count, slices, tokens) = embeddings.eval()(scans)
    torch.manual_seed(0)
    with torch.no_grad():
        embeddings.train().scan_positions = lambda table, scans, mask: table[:scans][None]
        some, grid = embeddings(scans)
    kept = round(0.6 * tokens)
    assert grid == (count, slices, kept) and some.shape[1] == 1 + count * slices * kept
    assert torch.equal(some[:, 0], whole[:, 0])
    rows, all_rows = some[0, 1:].view(count * slices, kept, -1), whole[0, 1:].view(count * slices, tokens, -1)
    places = [[int((row == other).all(1).nonzero()) for row in some_] for some_, other in zip(rows, all_rows)]
    assert all(len(set(place)) == kept for place in places) and len({tuple(sorted(place)) for place in places}) > 1


def test_patch_dropout_trains_and_leaves_evaluation_alone(make_model):
    torch.manual_seed(0)
    model = make_model(attention_scopes=["slice", "scan", "study"], max_num_scans=3, patch_dropout=0.5)
    inputs = {name: value.repeat_interleave(2, 0) for name, value in random_study(model).items()}
    inputs["scan_mask"][1, 1] = False
    expected = model.eval()(**inputs).logits_per_image
    model.vision_model.config.patch_dropout = 0.0
    assert torch.equal(model(**inputs).logits_per_image, expected)
    model.vision_model.config.patch_dropout = 0.5
    model.train()(**inputs, return_loss=True).loss.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "vision_model.encoder" in name]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    with pytest.raises(Exception, match="patch_dropout is 1.0"):
        make_model(patch_dropout=1.0)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_attends_like_float32(make_model, autocast):
    model = make_model()
    inputs = random_study(model)
    names = ("pixel_values", "scan_name_ids", "scan_mask")
    scans = {name: inputs[name] for name in names}
    expected, *_ = model.encode_images(**scans)
    (expected.square().sum()).backward()
    gradient = model.vision_model.encoder.layers[0].self_attn.qkv.weight.grad.clone()
    model.zero_grad()
    if autocast:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, *_ = model.encode_images(**scans)
    else:
        found, *_ = model.bfloat16().encode_images(**{**scans, "pixel_values": scans["pixel_values"].bfloat16()})
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.detach().float(), expected.detach(), atol=0.05 * float(expected.detach().abs().max()), rtol=0.05
    )
    (found.float().square().sum()).backward()
    half = model.vision_model.encoder.layers[0].self_attn.qkv.weight.grad.float()
    assert torch.nn.functional.cosine_similarity(half.flatten(), gradient.flatten(), dim=0) > 0.99
