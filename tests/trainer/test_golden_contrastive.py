"""The recorded CLIP and SigLIP losses of the reference, gradients included, in one process and in two."""

import pytest
import torch
from golden_cases import assert_close, case, names
from groups import free_port, spawn, start
from tiny_models import leave_group

from itemized_clip_hf.trainer.losses.functional import contrastive_loss, multi_positive_loss
from itemized_clip_hf.trainer.objectives import load_objective


def along_sphere(gradient, x):
    """Of a gradient at unit vectors, the part that a normalisation lets through."""
    return gradient - (gradient * x).sum(-1, keepdim=True) * x


def replay(objective, tensors, what=""):
    """The recordings take normalised embeddings, the objectives normalise: their gradients lack the radial part."""
    images, texts = (tensors[f"in.{name}_features"].clone().requires_grad_() for name in ("image", "text"))
    scale = tensors["in.logit_scale"].log().requires_grad_()
    bias = tensors.get("in.logit_bias", torch.zeros(())).clone().requires_grad_()
    normal = tensors["in.false_negatives"].view(-1).bool() if "in.false_negatives" in tensors else None
    out = objective(images, None, texts[:, None], None, normal, scale, bias, None)
    assert_close(out["loss"], tensors["out.total"], f"{what} total")
    out["loss"].backward()
    for name, leaf in (("image", images), ("text", texts)):
        recorded = along_sphere(tensors[f"grad.{name}_features"], leaf.detach())
        assert_close(leaf.grad, recorded, f"{what} gradient of {name}s")
    assert_close(scale.grad, tensors["grad.logit_scale"] * tensors["in.logit_scale"], f"{what} gradient of the scale")
    if "grad.logit_bias" in tensors:
        assert_close(bias.grad, tensors["grad.logit_bias"], f"{what} gradient of the bias")


@pytest.mark.parametrize(
    "name, objective, arguments",
    [
        ("baseline_clip", "clip", {}),
        ("baseline_clip", "clip", {"global_loss": True}),
        ("baseline_clip", "hlip", {"normal_check": True}),
        ("baseline_clip_false_negatives", "hlip", {"normal_check": True}),
        ("baseline_siglip", "siglip", {}),
        ("baseline_siglip", "hlip", {"form": "siglip"}),
        ("baseline_siglip_false_negatives", "hlip", {"form": "siglip", "normal_check": True}),
    ],
)
def test_one_process(name, objective, arguments):
    replay(load_objective(objective, **arguments), case(name)[1])


@pytest.mark.parametrize("name", ["baseline_clip", "baseline_clip_false_negatives"])
def test_whole_gradient_of_the_softmax_form(name):
    """The maths below the normalisation gives the recorded gradients with their radial part."""
    tensors = case(name)[1]
    images, texts = (tensors[f"in.{kind}_features"].clone().requires_grad_() for kind in ("image", "text"))
    normal = tensors.get("in.false_negatives", torch.zeros(len(images), 1)).bool()
    targets = torch.eye(len(images)).bool() | normal & normal.t()
    loss = contrastive_loss(images, texts, images, texts, targets, tensors["in.logit_scale"].log()) / len(images)
    assert_close(loss, tensors["out.total"])
    loss.backward()
    assert_close(images.grad, tensors["grad.image_features"])
    assert_close(texts.grad, tensors["grad.text_features"])


def test_false_negatives_change_the_loss():
    """The recorded cases hold normal studies, or the comparison would be empty."""
    for name, form in (("baseline_clip_false_negatives", "clip"), ("baseline_siglip_false_negatives", "siglip")):
        tensors = case(name)[1]
        assert tensors["in.false_negatives"].sum() > 1
        with pytest.raises(AssertionError):
            replay(load_objective("hlip", form=form), tensors)


WORLDS = [
    ("baseline_clip_local_world2", "clip", {}),
    ("baseline_clip_local_world2", "hlip", {}),
    ("baseline_clip_global_world2", "clip", {"global_loss": True}),
    ("baseline_siglip_world2", "siglip", {}),
    ("baseline_siglip_world2", "hlip", {"form": "siglip"}),
]


def replay_rank(rank: int, world: int, port: int):
    start(rank, world, port)
    for name, objective, arguments in WORLDS:
        tensors = case(name)[1]
        own = {k.removeprefix(f"rank{rank}."): v for k, v in tensors.items() if k.startswith(f"rank{rank}.")}
        replay(load_objective(objective, **arguments), own, f"{name}, rank {rank}:")
    leave_group()


def test_two_processes():
    spawn(replay_rank, (2, free_port()), 2)


def test_all_cases_are_here():
    assert len(names("baseline_clip*")) == 4 and len(names("baseline_siglip*")) == 3


def test_siglip_is_mps_of_one_item():
    tensors = case("baseline_siglip")[1]
    images, texts = tensors["in.image_features"], tensors["in.text_features"]
    mask = torch.ones(len(images), 1, dtype=torch.bool)
    loss = multi_positive_loss(images, texts[:, None], mask, tensors["in.logit_scale"].log(), tensors["in.logit_bias"])
    assert_close(loss, tensors["out.total"])
