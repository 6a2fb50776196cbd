"""The recorded losses of the reference, gradients included."""

import pytest
import torch
from golden_cases import assert_close, case, names

from itemized_clip_hf.conversion import convert_pooler
from itemized_clip_hf.trainer.objectives import load_objective


def replay(objective, meta, tensors, terms=()):
    config = meta["config"]
    batch, slots, dim = config["batch"], config["num_items"], config["dim"]
    inputs = {
        name: tensors.get(f"in.{name}", torch.zeros(batch, 1, dim)).clone().requires_grad_()
        for name in ("image_features", "image_tokens", "text_features")
    }
    scale = tensors["in.logit_scale"].log().requires_grad_()
    bias = tensors["in.logit_bias"].clone().requires_grad_()
    mask = tensors["in.textmask"].bool() if "in.textmask" in tensors else torch.ones(batch, slots, dtype=torch.bool)
    pooler = None
    if "heads" in config:
        source = {k.removeprefix("param.visual_proj."): v for k, v in tensors.items() if k.startswith("param.")}
        pooler = convert_pooler(source, config["heads"])
    draws = objective.draw(mask, config.get("tokens", 1), config.get("heads", 1))
    if "draw.neg_index" in tensors:
        draws.negatives = tensors["draw.neg_index"]
        draws.keep_mask = tensors["draw.keep_mask"].bool() if "draw.keep_mask" in tensors else None
    out = objective(
        image_embeds=inputs["image_features"],
        image_tokens=inputs["image_tokens"],
        item_embeds=inputs["text_features"].view(batch, slots, dim),
        item_mask=mask,
        is_normal=tensors["in.normals"].view(-1).bool() if "in.normals" in tensors else None,
        logit_scale=scale,
        logit_bias=bias,
        pooler=pooler,
        draws=draws,
    )
    assert_close(out["loss"], tensors["out.total"], "total")
    for term in terms:
        if f"out.{term}" in tensors:
            assert_close(out[term], tensors[f"out.{term}"], term)
    out["loss"].backward()
    for name, leaf in inputs.items():
        if f"grad.{name}" in tensors:
            gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            assert_close(gradient, tensors[f"grad.{name}"], f"gradient of {name}", 3e-4)
    assert_close(scale.grad, tensors["grad.logit_scale"] * tensors["in.logit_scale"], "gradient of the scale", 3e-4)
    assert_close(bias.grad, tensors["grad.logit_bias"], "gradient of the bias", 3e-4)
    if pooler is not None:
        stacked = {
            "attn.in_proj_weight": [pooler.q_proj.weight, pooler.k_proj.weight, pooler.v_proj.weight],
            "attn.in_proj_bias": [pooler.q_proj.bias, pooler.k_proj.bias, pooler.v_proj.bias],
            "attn.out_proj.weight": [pooler.out_proj.weight],
            "attn.out_proj.bias": [pooler.out_proj.bias],
            **{
                f"ln_{part}.{kind}": [getattr(getattr(pooler, f"layer_norm_{part}"), kind)]
                for part in "qkv"
                for kind in ("weight", "bias")
            },
        }
        checked = 0
        for name, parameters in stacked.items():
            if f"grad.visual_proj.{name}" in tensors:
                gradient = torch.cat([parameter.grad for parameter in parameters])
                assert_close(gradient, tensors[f"grad.visual_proj.{name}"], f"gradient of {name}", 3e-4)
                checked += 1
        assert checked in (0, 10)


@pytest.mark.parametrize("name", names("loss_2d_*") + names("loss_rad_*"))
def test_itemized_clip(name):
    meta, tensors, _ = case(name)
    config = meta["config"]
    on = config["mps_on"]
    objective = load_objective(
        "itemized_clip",
        ila_weight=config["ila_weight"] if on else 1.0,
        mps_weight=config["mps_weight"] if on else 0.0,
        kta_weight=config["kta_weight"] or 0.0,
        iis_weight=config["iis_weight"] or 0.0,
        keep_rate=config["keep_rate"],
        key_token_rate=config["key_token_rate"],
        worst_positive_factor=config["uwp_factor"],
        normal_check=config["variant"] == "rad" and not config.get("no_normal_check", False),
    )
    replay(objective, meta, tensors, ("ila", "kta", "mps", "iis") if on else ("kta",))


@pytest.mark.parametrize(
    "name, objective",
    [("baseline_flair_tcs_mps", "flair"), ("baseline_mps_only_2d", "mps"), ("baseline_mps_only_rad", "mps")],
)
def test_baselines(name, objective):
    meta, tensors, _ = case(name)
    replay(load_objective(objective), meta, tensors)


def test_all_composite_cases_are_here():
    assert len(names("loss_2d_*")) == len(names("loss_rad_*")) == 7
