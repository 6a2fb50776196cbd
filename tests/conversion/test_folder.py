"""Checkpoints of every layout -> folders that load in another process, offline; and their reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from forked import run_forked
from golden_cases import assert_close, case
from golden_models import scopes
from safetensors.torch import save_file
from sources import LAYOUTS, TEXT, VISION, prima_state, source, tokenizer_of_size, training_dictionary

from itemized_clip_cli import main
from itemized_clip_hf.conversion import convert, parity, reference
from itemized_clip_hf.conversion.folder import DOMAIN, REPORT, convert_folder, put_names
from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.models.load import load

LOAD = """
import json, sys
import itemized_clip_hf, torch
from transformers import AutoConfig, AutoModel, AutoProcessor
folder = sys.argv[1]
model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
inputs = torch.load(folder + "/../inputs.pt")
with torch.no_grad():
    outputs = model(**inputs)
torch.save((outputs.image_embeds, outputs.image_tokens, outputs.item_embeds), folder + "/../outputs.pt")
print(json.dumps({"type": type(processor).__name__, "preprocessing": processor.preprocessing() == model.config.preprocessing}))
"""


def write(state, path: Path, kind: str = "module.") -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state if kind == "raw" else training_dictionary(state, kind), path)
    return path


def converted(tmp_path, layout: str, kind: str = "module.", suffix: str = ".pt"):
    state, domain, config = source(layout)
    path = write(state, tmp_path / f"epoch_3{suffix}", kind)
    tokenizer = tokenizer_of_size(config.text_config.vocab_size)
    report = convert_folder(path, domain, tmp_path / "model", tokenizer, config, accept=["other-vocabulary"])
    return state, config, report


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_loads_in_another_process_offline(tmp_path, layout):
    state, config, report = converted(tmp_path, layout)
    assert sorted(report["keys"]) == sorted(state) and report["parity"]["clean"]
    vision = config.vision_config
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "pixel_values": torch.randn(1, 1, vision.num_channels, *vision.image_size, generator=generator),
        "input_ids": torch.tensor([[3, 5, 4, config.text_config.vocab_size - 1]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    torch.save(inputs, tmp_path / "inputs.pt")
    if layout == LAYOUTS[0]:  # nothing imported, nothing cached
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(tmp_path / "model")], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        done = run_forked(tmp_path / "model", code=LOAD)
    assert json.loads(done.stdout) == {"type": "ItemizedCLIPProcessor", "preprocessing": True}
    with torch.no_grad():
        direct = convert(training_dictionary(state), report["domain"], config).model(**inputs)
    expected = (direct.image_embeds, direct.image_tokens, direct.item_embeds)
    for found, wanted in zip(torch.load(tmp_path / "outputs.pt"), expected):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["raw", "", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes(tmp_path, kind):
    _, _, report = converted(tmp_path, "pictures", kind)
    assert report["parity"]["clean"]


def test_safetensors_and_older_files(tmp_path):
    state, domain, config = source("volumes")
    config.text_config.position_ids = None
    state["text.transformer.embeddings.position_ids"] = torch.arange(8)[None]
    path = write(state, tmp_path / "weights.safetensors")
    tokenizer = tokenizer_of_size(config.text_config.vocab_size)
    report = convert_folder(path, domain, tmp_path / "model", tokenizer, config)
    assert report["source"]["file"] == "weights.safetensors" and report["parity"]["clean"]
    old = tmp_path / "old.pt"
    torch.save(training_dictionary(state), old, _use_new_zipfile_serialization=False)
    assert convert_folder(old, domain, tmp_path / "second", tokenizer, config)["keys"] == report["keys"]


def test_what_the_folder_says(tmp_path):
    state, config, report = converted(tmp_path, "pictures")
    folder = tmp_path / "model"
    assert json.loads((folder / REPORT).read_text()) == json.loads(json.dumps(report))
    assert report["keys"]["visual.conv1.weight"] == "vision_model.embeddings.patch_embedding.weight"
    assert report["source"]["bytes"] == (tmp_path / "epoch_3.pt").stat().st_size
    facts = json.loads((folder / DOMAIN).read_text())
    assert facts["labels"] == load_domain("remote-sensing").labels and facts["image"]["image_mean"]
    settings = json.loads((folder / "config.json").read_text())
    assert settings["domain"] == "remote-sensing" and settings["preprocessing"] == report["preprocessing"]
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))
    assert (folder / "modeling_itemized_clip.py").exists() and (folder / "tokenizer.json").exists()


def test_hlip_is_scored_by_its_global_embedding(tmp_path):
    _, config, report = converted(tmp_path, "hlip")
    assert report["scoring"] == "global" and "item_pooler.out_proj.weight" in report["initial_values"]
    model, _ = load(str(tmp_path / "model"), "cpu")
    assert model.config.scoring == "global" and model.vision_model.embeddings.scan_embedding.shape[0] == 40


def test_names_of_a_prima_checkpoint(tmp_path):
    state, config, _ = converted(tmp_path, "names")
    torch.save(prima_state(state), tmp_path / "prima.pt")
    report = put_names(tmp_path / "prima.pt", tmp_path / "model", tmp_path / "with-names")
    assert report["not_used"] == 2 and len(report["keys"]) == sum("serienameencoder" in name for name in state)
    model, _ = load(str(tmp_path / "with-names"), "cpu")
    encoder = model.vision_model.embeddings.scan_name_encoder
    source_name = "visual.trunk.serienameencoder.transformer.layers.0.0.fn.to_qkv.weight"
    torch.testing.assert_close(encoder.layers[0].qkv.weight.data, 2 * state[source_name])
    torch.testing.assert_close(encoder.projection.weight.data, state["visual.trunk.sne_proj.weight"])


def test_nothing_is_replaced_unasked(tmp_path):
    state, _, _ = converted(tmp_path, "names")
    torch.save(prima_state(state), tmp_path / "prima.pt")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not empty"):
        put_names(tmp_path / "prima.pt", tmp_path / "model", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    put_names(tmp_path / "prima.pt", tmp_path / "model", tmp_path / "model", overwrite=True)
    assert {REPORT, DOMAIN, "names_report.json"} < {path.name for path in (tmp_path / "model").iterdir()}


def test_training_starts_from_the_names_of_prima(tmp_path):
    from itemized_clip_hf.conversion.initialize import initialize

    state, domain, config = source("names")
    torch.save(prima_state(state), tmp_path / "prima.pt")
    model = convert(state, domain, config).model
    fresh = initialize(model, tmp_path / "prima.pt")
    assert "vision_model.embeddings.scan_name_encoder.projection.*" in fresh
    torch.testing.assert_close(
        model.vision_model.embeddings.scan_name_encoder.embedding.weight.data,
        2 * state["visual.trunk.serienameencoder.embed.weight"],
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_fails_where_a_weight_differs(layout):
    state, domain, config = source(layout)
    conversion = convert(state, domain, config)
    assert parity.compare(conversion)["clean"]
    with torch.no_grad():
        conversion.model.vision_model.encoder.layers[0].mlp.fc1.weight[0, 0] += 0.5
    assert not parity.compare(conversion)["clean"]


def test_the_plain_formulation_gives_the_recorded_numbers():
    """The formulation that conversions are compared with, against what the released code gave."""
    meta, io, state = case("model2d_tiny")
    width = meta["config"]["vision_cfg"]
    for number, image in enumerate(io["in.images"]):
        embeds, tokens = reference.picture(state, image, width["width"] // width["head_width"])
        assert_close(embeds, io["out.image_features"][number], "global")
        assert_close(tokens, io["out.image_tokens"][number], "tokens")
        texts = io["out.text_features"].view(meta["batch"], meta["items_per_image"], -1)[number]
        assert_close(
            reference.pool(state, texts, tokens, 8, "visual_proj."), io["out.xattn.features"][number], "pooler"
        )
    found = reference.clip_text(state, io["in.token_ids"], meta["config"]["text_cfg"]["heads"])
    assert_close(found, io["out.text_features"], "texts")


@pytest.mark.parametrize(("name", "domain"), [("hlipsn_tiny", "brain-mri"), ("hlip_singlescan_tiny", "chest-ct")])
def test_the_plain_formulation_of_volumes_gives_the_recorded_numbers(name, domain):
    meta, io, state = case(name)
    heads, text = meta["vision"]["num_heads"], meta["text"]
    found_names = io.get("in.series_ids")
    for number, scans in enumerate(io["in.volume"]):
        names = None if found_names is None else found_names[number]
        embeds, tokens = reference.volumes(state, scans, names, scopes(meta["vision"]), heads)
        assert_close(embeds, io["out.image_features"][number], "global")
        assert_close(tokens, io["out.image_tokens"][number], "tokens")
    ids, mask = io["in.token_ids"], io["in.attention_mask"].bool()
    found = reference.bert_text(state, ids, mask, text["num_attention_heads"], text["layer_norm_eps"])
    assert_close(found, io["out.text_features"], "texts")


def test_the_command(tmp_path, monkeypatch, caplog):
    state, domain, config = source("volumes")
    write(state, tmp_path / "c.pt")
    vision, text = config.vision_config.to_dict(), config.text_config.to_dict()
    sizes = {
        "projection_dim": config.projection_dim,
        "num_pooler_heads": config.num_pooler_heads,
        "vision_config": {name: vision[name] for name in VISION},
        "text_config": {name: text[name] for name in TEXT},
    }
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    tokenizer_of_size(config.text_config.vocab_size).save_pretrained(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    command = ["convert", "-i", "c.pt", "--domain", domain, "-o", "model", "--config", "sizes.json"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "vocab.txt of microsoft/BiomedVLP-CXR-BERT" in done.stderr
    assert not (tmp_path / "model").exists()
    command += ["--tokenizer", "tokenizer"]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["parity"]["clean"], done.stderr
    assert "cannot be confirmed" in caplog.text
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and "is not empty" in done.stderr
