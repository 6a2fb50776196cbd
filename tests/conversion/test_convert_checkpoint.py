"""Configurations that do not fit, the older name of the projection, and MAE encoders."""

import pytest
import torch
from golden_cases import case
from golden_models import picture_model

from itemized_clip_hf import ItemizedCLIPVisionModel
from itemized_clip_hf.conversion import convert_checkpoint


@pytest.fixture
def picture():
    meta, _, state = case("model2d_tiny")
    return dict(state), picture_model()[2].config


def test_unknown_layout():
    with pytest.raises(ValueError, match="no known checkpoint layout"):
        convert_checkpoint({"encoder.weight": torch.zeros(1)}, "brain-mri")
    with pytest.raises(ValueError, match="not a state dict"):
        convert_checkpoint({"epoch": 3}, "brain-mri")


def test_other_sizes_than_the_config(picture):
    state, config = picture
    config.vision_config.hidden_size = 32
    with pytest.raises(ValueError, match="vision_config.hidden_size is 32 in the config, but the checkpoint's is 64"):
        convert_checkpoint(state, "remote-sensing", config)


def test_legacy_projection_replaces_the_other(picture):
    state, config = picture
    state["image_post2.proj"] = state["image_post.proj"] + 1
    model = convert_checkpoint(state, "remote-sensing", config)
    torch.testing.assert_close(model.visual_projection.weight, state["image_post2.proj"].t())


def test_mae_needs_the_licence_accepted():
    with pytest.raises(ValueError, match="CC-BY-NC-4.0.*accept_license=True"):
        ItemizedCLIPVisionModel.from_mae({})


def test_from_mae_fills_the_tower(tmp_path):
    from itemized_clip_hf import ItemizedCLIPVisionConfig

    generator = torch.Generator().manual_seed(0)
    config = ItemizedCLIPVisionConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_channels=1,
        image_size=[8, 16, 16],
        patch_size=[4, 8, 8],
        attention_scopes=["scan", "study"],
        max_num_scans=3,
    )

    def tensor(*shape):
        return torch.randn(shape, generator=generator)

    state = {
        "cls_token": tensor(1, 1, 24),
        "pos_embed": tensor(1, 10, 24),
        "patch_embed.proj.weight": tensor(24, 3, 8, 8),
        "patch_embed.proj.bias": tensor(24),
        "mask_token": tensor(1, 1, 24),
        "decoder_embed.weight": tensor(8, 24),
        "norm.weight": tensor(24),
        "norm.bias": tensor(24),
    }
    for layer in range(2):
        shapes = {
            "norm1": (24,),
            "attn.qkv": (72, 24),
            "attn.proj": (24, 24),
            "norm2": (24,),
            "mlp.fc1": (48, 24),
            "mlp.fc2": (24, 48),
        }
        for name, shape in shapes.items():
            state[f"blocks.{layer}.{name}.weight"] = tensor(*shape)
            state[f"blocks.{layer}.{name}.bias"] = tensor(shape[0])
    path = tmp_path / "mae.pth"
    torch.save({"model": state}, path)
    model = ItemizedCLIPVisionModel.from_mae(str(path), config, accept_license=True)
    torch.testing.assert_close(model.encoder.layers[1].mlp.fc2.weight.data, state["blocks.1.mlp.fc2.weight"])
    # a volume that repeats a grey picture over its depth gives the picture's patch response
    picture = torch.randn(16, 16, generator=generator)
    volume = picture.expand(1, 1, 8, 16, 16)
    expected = torch.nn.functional.conv2d(
        picture.expand(1, 3, 16, 16), state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8
    )
    got = model.embeddings.patch_embedding(volume)[0, 0].permute(2, 0, 1)
    torch.testing.assert_close(got, expected[0], atol=1e-4, rtol=1e-4)
    del state["blocks.1.norm2.bias"]
    with pytest.raises(ValueError, match="do not fit: missing"):
        ItemizedCLIPVisionModel.from_mae({"model": state}, config, accept_license=True)
