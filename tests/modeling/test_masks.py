"""Padding changes nothing, and nothing depends on what else is in the batch."""

import pytest
import torch
from tiny_models import random_study


def pad_scans(inputs, count, seed=9):
    """More scans, full of noise, masked."""
    generator = torch.Generator().manual_seed(seed)
    rubbish = 50 * torch.randn(1, count, *inputs["pixel_values"].shape[2:], generator=generator)
    return {
        **inputs,
        "pixel_values": torch.cat([inputs["pixel_values"], rubbish], 1),
        "scan_name_ids": torch.cat([inputs["scan_name_ids"], inputs["scan_name_ids"][:, :1].expand(-1, count, -1)], 1),
        "scan_mask": torch.cat([inputs["scan_mask"], torch.zeros(1, count, dtype=torch.bool)], 1),
    }


SCOPES = [["slice", "scan", "study"], ["study", "scan", "slice"], ["slice", "study", "slice"], ["scan", "scan", "scan"]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("scopes", SCOPES)
@pytest.mark.parametrize("named", [False, True])
@torch.no_grad()
def test_padded_scans_change_nothing(make_model, attention, scopes, named):
    # the table of three rows has to be interpolated for the padded study, and must not be
    changes = {"use_scan_name_encoder": True, "scan_name_hidden_size": 32} if named else {"max_num_scans": 3}
    model = make_model(attention_scopes=scopes, **changes)
    model.set_attn_implementation(attention)
    inputs = random_study(model)
    expected, padded = model(**inputs), model(**pad_scans(inputs, 3))
    tokens = expected.image_tokens.shape[1]
    torch.testing.assert_close(padded.image_embeds, expected.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.image_tokens[:, :tokens], expected.image_tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded.logits_per_image, expected.logits_per_image, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("text", ["bert", "clip"])
def test_padded_items_change_nothing(make_model, text):
    model = make_model(text=text)
    inputs = random_study(model)
    inputs["input_ids"][..., -1] = 119  # the end token of the CLIP tower
    inputs = {name: value.repeat_interleave(2, 0) for name, value in inputs.items()}
    inputs["pixel_values"] = inputs["pixel_values"] * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1, 1, 1)
    padded = dict(inputs)
    generator = torch.Generator().manual_seed(3)
    rubbish = torch.randint(5, 100, (2, 2, 7), generator=generator)
    padded["input_ids"] = torch.cat([inputs["input_ids"], rubbish], 1)
    padded["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(rubbish)], 1)
    padded["item_mask"] = torch.cat([inputs["item_mask"], torch.zeros(2, 2, dtype=torch.bool)], 1)
    other = {**padded, "input_ids": torch.cat([inputs["input_ids"], torch.full_like(rubbish, 7)], 1)}

    expected, out = model(**inputs), model(**padded)
    torch.testing.assert_close(out.item_embeds[:, :3], expected.item_embeds)
    assert not out.item_embeds[:, 3:].any()
    columns = out.logits_per_image.unflatten(1, (2, 5))
    torch.testing.assert_close(columns[:, :, :3].flatten(1), expected.logits_per_image)
    assert (columns[:, :, 3:] == torch.finfo(torch.float32).min).all()

    losses, gradients = [], []
    for batch in (padded, other):
        torch.manual_seed(5)
        model.zero_grad()
        loss = model(**batch, return_loss=True).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_items_are_encoded_as_if_padding_were_trimmed(make_model):
    model = make_model()
    inputs = random_study(model)
    longer = {
        **inputs,
        "input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 6)),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 6)),
    }
    torch.testing.assert_close(model(**longer).item_embeds, model(**inputs).item_embeds)
    del inputs["item_mask"], longer["item_mask"]
    torch.testing.assert_close(model(**longer).item_embeds, model(**inputs).item_embeds, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_nothing_depends_on_the_batch(make_model):
    model = make_model(max_num_scans=8)
    studies = [random_study(model, seed, scans) for seed, scans in enumerate([1, 3, 2])]
    alone = [model(**inputs) for inputs in studies]
    padded = [pad_scans(inputs, 3 - inputs["scan_mask"].shape[1]) for inputs in studies]
    together = model(**{name: torch.cat([inputs[name] for inputs in padded]) for name in padded[0]})
    for i, out in enumerate(alone):
        torch.testing.assert_close(together.image_embeds[i], out.image_embeds[0], atol=1e-5, rtol=1e-5)
        own = together.logits_per_image[i, 3 * i : 3 * i + 3]
        torch.testing.assert_close(own, out.logits_per_image[0], atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_shared_prompts_equal_the_same_items(make_model):
    model = make_model()
    inputs = random_study(model)
    per_study = model(**inputs).logits_per_image
    shared = {**inputs, "input_ids": inputs["input_ids"][0], "attention_mask": inputs["attention_mask"][0]}
    del shared["item_mask"]
    torch.testing.assert_close(model(**shared).logits_per_image, per_study)


@torch.no_grad()
def test_picture_is_a_scan_of_depth_one(make_model):
    model = make_model(num_channels=3, image_size=[1, 16, 16], patch_size=[1, 8, 8])
    pictures = torch.randn(2, 3, 16, 16)
    flat = model.get_image_features(pictures).pooler_output
    torch.testing.assert_close(model.get_image_features(pictures[:, None, :, None]).pooler_output, flat)


@torch.no_grad()
def test_other_sizes_than_the_configured_one(make_model):
    model = make_model()
    out = model.get_image_features(torch.randn(1, 2, 1, 12, 24, 32))
    assert out.last_hidden_state.shape[1] == 2 * 3 * 3 * 4


@torch.no_grad()
def test_bfloat16_is_close_to_float32(make_model):
    model = make_model()
    inputs = random_study(model)
    expected = model(**inputs).image_embeds
    low = model.to(torch.bfloat16)(**{**inputs, "pixel_values": inputs["pixel_values"].bfloat16()}).image_embeds
    assert torch.nn.functional.cosine_similarity(low.float(), expected).item() > 0.995


def test_gradient_checkpointing_gives_the_same_gradients(make_model):
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model(**random_study(model), return_loss=True).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients)


def test_clear_errors(make_model):
    model = make_model()
    inputs = random_study(model)
    with pytest.raises(ValueError, match="2 channels, the model was built for 1"):
        model.get_image_features(torch.zeros(1, 1, 2, 8, 16, 16))
    with pytest.raises(ValueError, match="not a multiple of the patch size"):
        model.get_image_features(torch.zeros(1, 1, 1, 8, 16, 20))
    with pytest.raises(ValueError, match="expected \\(batch, scans"):
        model.get_image_features(torch.zeros(1, 1, 8, 16, 16))
    with pytest.raises(ValueError, match="no item as real"):
        model(**{**inputs, "item_mask": torch.zeros(1, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="items of each study"):
        model(inputs["pixel_values"], inputs["input_ids"][0], return_loss=True)
