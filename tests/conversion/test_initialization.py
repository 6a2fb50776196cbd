"""`--init`: what fits is loaded, what is left is named."""

import json

import pytest
import torch
from golden_cases import case
from golden_models import picture_model, radiology_model
from tiny_models import ITEMS, tiny_config
from transformers import AutoModel

from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel, ItemizedCLIPVisionModel
from itemized_clip_hf.conversion.initialize import initialize, summarize
from itemized_clip_hf.models.adapters import add_lora, save_adapters

peft = pytest.importorskip("peft")


def checkpoint(name, folder, without=(), **more):
    """A recorded state as the authors' training code saves it."""
    state = {k: v for k, v in case(name)[2].items() if not k.startswith(without)} if without else case(name)[2]
    path = folder / f"{name}.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in {**state, **more}.items()}}, path)
    return path


def fresh_like(model, **changes):
    torch.manual_seed(5)
    config = model.config.to_dict()
    for part in ("vision_config", "text_config"):
        config[part] = {**config[part], **changes.pop(part, {})}
    return ItemizedCLIPModel(ItemizedCLIPConfig(**{**config, **changes}))


def equal(model, other, name):
    return torch.equal(model.state_dict()[name], other.state_dict()[name])


def test_authors_checkpoint_fills_the_whole_model(tmp_path, messages):
    converted = picture_model()[2]
    model = fresh_like(converted)
    assert initialize(model, checkpoint("model2d_tiny", tmp_path)) == []
    assert all(equal(model, converted, name) for name in converted.state_dict())
    assert not [m for m in messages if "initial values" in m or "another shape" in m]


def test_hlip_leaves_the_pooler_and_names_it(tmp_path, messages):
    converted = radiology_model("hlip_singlescan_tiny", "chest-ct")[2]
    scans = {"use_scan_name_encoder": True, "scan_name_hidden_size": 32, "max_num_scans": 1}
    model = fresh_like(converted, vision_config=scans)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scans = {"visual.trunk.series_posemb": torch.randn(1, 40, 48)}
    path = checkpoint("hlip_singlescan_tiny", tmp_path, ("visual_attn.", "logit_bias"), **scans)
    fresh = initialize(model, path)
    assert set(fresh) == {"logit_bias", "item_pooler.*", "vision_model.embeddings.scan_name_encoder.*"}
    assert any("keep their initial values" in m and "item_pooler.*" in m for m in messages)
    assert any("not in this model" in m and "scan_embedding" in m for m in messages)
    for name, tensor in model.state_dict().items():
        kept = name.startswith(("logit_bias", "item_pooler.", "vision_model.embeddings.scan_name_encoder."))
        assert torch.equal(tensor, before[name] if kept else converted.state_dict()[name]), name


def test_other_sizes(tmp_path, messages):
    """Another grid and context are adjusted; another projection and vocabulary stay fresh, with both shapes in the log."""
    converted = picture_model()[2]
    vision, text = converted.config.vision_config, converted.config.text_config
    side = vision.image_size[-1] * 2
    rows, words = text.max_position_embeddings, text.vocab_size
    model = fresh_like(
        converted,
        projection_dim=converted.config.projection_dim // 2,
        vision_config={"image_size": [1, side, side], "num_attention_heads": vision.num_attention_heads * 2},
        text_config={"max_position_embeddings": rows + 3, "vocab_size": words + 5},
    )
    table = "text_model.embeddings.position_embedding.weight"
    last = model.state_dict()[table][rows:].clone()
    fresh = initialize(model, checkpoint("model2d_tiny", tmp_path))
    assert "visual_projection.*" in fresh and "text_model.embeddings.token_embedding.*" in fresh
    assert not [name for name in fresh if "position" in name or "encoder" in name]
    assert torch.equal(model.state_dict()[table][:rows], converted.state_dict()[table])
    assert torch.equal(model.state_dict()[table][rows:], last)
    grid = "vision_model.embeddings.position_embedding"
    small, large = converted.state_dict()[grid], model.state_dict()[grid]
    assert large.shape[1] == 2 * small.shape[1]
    torch.testing.assert_close(large.mean((0, 1, 2)), small.mean((0, 1, 2)), atol=0.02, rtol=0.05)
    assert any(f"({words}, " in m and f"instead of ({words + 5}, " in m for m in messages)


def test_model_folders_adapters_and_other_heads(tmp_path, messages):
    torch.manual_seed(0)
    source = ItemizedCLIPModel(tiny_config())
    source.save_pretrained(tmp_path / "model")
    model = fresh_like(source, vision_config={"num_channels": 3, "num_attention_heads": 4})
    assert initialize(model, tmp_path / "model") == ["vision_model.embeddings.patch_embedding.weight"]
    assert equal(model, source, "vision_model.encoder.layers.0.mlp.fc1.weight")
    assert any("num_attention_heads = 2, the model has 4" in m for m in messages)

    adapted = AutoModel.from_pretrained(tmp_path / "model")
    add_lora(adapted, "both")
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B" in name:
                parameter.fill_(0.1)
    save_adapters(adapted, tmp_path / "adapters")
    model = fresh_like(source)
    assert initialize(model, tmp_path / "adapters") == []
    name = "vision_model.encoder.layers.0.mlp.fc1"
    layer = adapted.get_submodule(name)
    expected = layer.base_layer.weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(model.get_submodule(name).weight, expected)


def test_mae(tmp_path):
    torch.manual_seed(0)
    width, layers = 24, 3
    mae = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, 17, width),
        "patch_embed.proj.weight": torch.randn(width, 3, 8, 8),
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
        "mask_token": torch.zeros(1, 1, width),
    }
    shapes = {"norm1": (width,), "norm2": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    shapes |= {"mlp.fc1": (32, width), "mlp.fc2": (width, 32)}
    for layer in range(layers):
        for name, shape in shapes.items():
            mae[f"blocks.{layer}.{name}.weight"] = torch.randn(shape)
            mae[f"blocks.{layer}.{name}.bias"] = torch.randn(shape[:1])
    torch.save({"model": mae}, tmp_path / "mae.pth")
    torch.manual_seed(1)
    model = ItemizedCLIPModel(tiny_config(use_scan_name_encoder=True, scan_name_hidden_size=32))
    with pytest.raises(ValueError, match="CC-BY-NC-4.0.*--accept-license"):
        initialize(model, tmp_path / "mae.pth")
    fresh = initialize(model, tmp_path / "mae.pth", accept_license=True)
    assert "text_model.*" in fresh and "vision_model.embeddings.scan_name_encoder.*" in fresh
    assert not [name for name in fresh if name.startswith("vision_model.") and "scan_name" not in name]
    tower = ItemizedCLIPVisionModel.from_mae(mae, model.config.vision_config, accept_license=True)
    for name, tensor in tower.state_dict().items():
        if "scan_" not in name:
            assert torch.equal(model.vision_model.state_dict()[name], tensor), name


def test_errors(tmp_path):
    model = ItemizedCLIPModel(tiny_config())
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        initialize(model, tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither a model"):
        initialize(model, tmp_path / "empty")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        initialize(model, tmp_path / "text.pt")
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no known checkpoint layout"):
        initialize(model, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="nothing in .* fits the layers.*instead of"):
        initialize(model, checkpoint("hlip_singlescan_tiny", tmp_path))


def test_names_of_whole_modules():
    assert summarize(["a.b.x", "a.b.y", "c"], ["a.b.x", "a.b.y", "a.z", "c"]) == ["a.b.*", "c"]
    assert summarize(["a.x", "ab.y"], ["a.x", "a.y", "ab.y"]) == ["a.x", "ab.*"]
    assert summarize([], ["a.x"]) == []


RECIPE = """
base: brain-mri
tokenizer: {vocab_size: 120, context_length: 16}
image: {scan_size: [8, 16, 16], in_plane_size: 16}
model:
  projection_dim: 16
  num_pooler_heads: 2
  vision_config: {hidden_size: 24, num_hidden_layers: 3, num_attention_heads: 2, intermediate_size: 32,
                  image_size: [8, 16, 16], patch_size: [4, 8, 8], attention_scopes: [scan, scan, study],
                  use_scan_name_encoder: false}
  text_config: {hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}
training: {max_steps: 2, max_items: 3, max_scans: 2, warmup_steps: 1, logging_steps: 1, save_strategy: steps, save_steps: 1}
global_batch_size: 2
"""


def test_train_from_weights_with_adapters_then_resume(tmp_path):
    """The shell's way: --init, lora, a base folder beside the adapters, --resume, and the run goes on from adapters."""
    import numpy as np
    from click.testing import CliRunner

    from itemized_clip_hf.cli.train import command
    from itemized_clip_hf.models.load import load

    rng = np.random.default_rng(0)
    lines = []
    for index in range(4):
        np.save(tmp_path / f"{index}.npy", rng.normal(100, 30, (8, 16, 16)).astype(np.float32))
        lines.append({"id": str(index), "images": {"T1": f"{index}.npy"}, "items": ITEMS[: 1 + index % 3]})
    (tmp_path / "studies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    torch.manual_seed(0)
    source = ItemizedCLIPModel(tiny_config(attention_scopes=["scan", "scan", "study"]))
    source.save_pretrained(tmp_path / "source")

    def train(*more, output="run"):
        arguments = ["--recipe", tmp_path / "recipe.yaml", "-i", tmp_path / "studies.jsonl", "-o", tmp_path / output]
        done = CliRunner().invoke(command, [*map(str, arguments), "--device", "cpu", "--json", *map(str, more)])
        return done

    done = train("--init", tmp_path / "source", "--set", "lora=both", "--set", "freeze_text=false")
    assert done.exit_code == 0, (done.output, done.exception)
    base, _ = load(tmp_path / "run" / "base", "cpu")
    layer = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert equal(base, source, layer)
    adapted, _ = load(tmp_path / "run", "cpu")
    assert not equal(adapted, source, layer) and not equal(adapted, source, "visual_projection.weight")
    patch = "vision_model.embeddings.patch_embedding.weight"
    assert equal(adapted, source, patch)
    done = train("--set", "lora=both", "--set", "max_steps=4", "--resume")
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout.strip().splitlines()[-1])["steps"] == 4
    resumed, _ = load(tmp_path / "run", "cpu")
    assert equal(resumed, source, patch) and not equal(resumed, adapted, layer)
    done = train("-m", tmp_path / "run", "--set", "lora=vision", output="second")
    assert done.exit_code == 0, (done.output, done.exception)
    second, _ = load(tmp_path / "second" / "base", "cpu")
    assert equal(second, resumed, layer)
    done = train("-m", tmp_path / "run", "--init", tmp_path / "source", output="third")
    assert "not both" in str(done.exception)
