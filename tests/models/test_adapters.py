"""LoRA and frozen towers: what is trained, what is saved, and that the merged model is the trained one."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from groups import free_port, spawn, start
from ragged_batches import compare, loss_and_gradients, make_batch
from safetensors.torch import load_file
from tiny_models import leave_group, tiny_config
from trainers import dataset, make_trainer
from transformers import AutoModel

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments
from itemized_clip_hf.models.adapters import PRESETS, TRAINABLE, add_lora, find_targets, has_adapters
from itemized_clip_hf.models.load import load
from itemized_clip_hf.trainer.objectives import load_objective

peft = pytest.importorskip("peft")

OUTSIDE = tuple(f"{name}." for name in TRAINABLE) + ("logit_scale", "logit_bias")


@pytest.fixture
def base(processor, tmp_path) -> Path:  # noqa: F811
    torch.manual_seed(0)
    ItemizedCLIPModel(tiny_config(attention_scopes=["scan", "scan", "study"])).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(processor, base, folder, **settings):  # noqa: F811
    trainer = make_trainer(processor, folder, model=load(base, "cpu")[0], **settings)
    trainer.train()
    return trainer


def scores(model, trainer):
    batch = trainer.data_collator(dataset(6, seed=2))
    batch.pop("is_normal")
    with torch.no_grad():
        return model.eval()(**batch).logits_per_image


@pytest.mark.parametrize("text", ["bert", "clip"])
def test_targets_are_the_projections_of_attention_and_mlp(text):
    import re

    model = ItemizedCLIPModel(tiny_config(text=text, use_scan_name_encoder=True, scan_name_hidden_size=32))
    names = {"vision": 4 * 3, "text": 6}
    for preset, expected in {**names, "both": sum(names.values())}.items():
        pattern = find_targets(model, PRESETS[preset])
        found = [name for name, module in model.named_modules() if re.fullmatch(pattern, name)]
        assert len(found) == expected and all(name.startswith(PRESETS[preset]) for name in found)
        assert not [name for name in found if "scan_name" in name or "norm" in name.lower()]


@pytest.mark.parametrize("preset", ["vision", "text", "both"])
def test_only_adapters_and_what_is_outside_the_towers_move(processor, base, tmp_path, preset):  # noqa: F811
    before = load(base, "cpu")[0].state_dict()
    trainer = trained(processor, base, tmp_path / "run", lora=preset, weight_decay=0.1)
    moved, adapters = set(), set()
    for name, parameter in trainer.model.named_parameters():
        plain = name.replace(".base_layer.", ".")
        if ".lora_" in name:
            assert name.startswith(PRESETS[preset]) and parameter.requires_grad
            adapters.add(name)
            assert ".lora_A" in name or bool(parameter.abs().max() > 0), f"{name} did not move"
        elif not torch.equal(parameter, before[plain]):
            moved.add(name)
    assert adapters and moved and all(name.startswith(OUTSIDE) for name in moved), moved
    assert {"visual_projection.weight", "text_projection.weight", "logit_scale", "logit_bias"} <= moved
    assert any(name.startswith("item_pooler.") for name in moved)


def test_adapters_and_merged_model_are_the_trained_model(processor, base, tmp_path):  # noqa: F811
    trainer = trained(
        processor,
        base,
        tmp_path / "run",
        lora={
            "preset": "both",
            "rank": 4,
            "alpha": 32,
            "dropout": 0.2,
            "trainable": [*TRAINABLE, "text_model.*LayerNorm"],
        },
        objective="smartclip",  # a module of its own, and a scale it sets and freezes
        gradient_checkpointing=True,
    )
    trainer.save_model(str(tmp_path / "run"))
    expected = scores(trainer.model, trainer)
    assert not torch.allclose(expected, scores(load(base, "cpu")[0], trainer), atol=1e-2)
    size = sum(
        (tmp_path / "run" / name).stat().st_size for name in ("adapter_model.safetensors", "adapter_config.json")
    )
    assert size < (base / "model.safetensors").stat().st_size
    assert not (tmp_path / "run" / "model.safetensors").exists()
    names = set(load_file(tmp_path / "run" / "adapter_model.safetensors"))
    assert not [name for name in names if "base_layer" in name or "patch_embedding" in name]
    assert [name for name in names if "LayerNorm" in name] and [name for name in names if "objective_module" in name]

    apart = load(tmp_path / "run", "cpu", keep_adapters=True)[0]
    assert has_adapters(apart)
    torch.testing.assert_close(scores(apart, trainer), expected, rtol=0, atol=0)
    of_peft = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "run")
    of_auto = AutoModel.from_pretrained(tmp_path / "run")
    assert apart.config.scoring == "global"
    for model in (of_peft, of_auto):
        model.config.scoring = "global"  # theirs is the base model's
        torch.testing.assert_close(scores(model, trainer), expected, rtol=0, atol=0)

    merged, processor = load(tmp_path / "run", "cpu")
    assert merged.state_dict().keys() == load(base, "cpu")[0].state_dict().keys() and not has_adapters(merged)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(scores(again, trainer), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(apart, "text")


def test_base_that_moved(processor, base, tmp_path):  # noqa: F811
    trainer = trained(processor, base, tmp_path / "run", lora="text", max_steps=1)
    trainer.save_model(str(tmp_path / "run"))
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="base model.*is not at"):
        load(tmp_path / "run", "cpu")
    expected = scores(trainer.model, trainer)
    got = scores(load(tmp_path / "run", "cpu", base=tmp_path / "elsewhere")[0], trainer)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    (tmp_path / "elsewhere").rename(tmp_path / "run" / "base")
    assert load(tmp_path / "run", "cpu")[0].config.projection_dim == 16


@pytest.mark.parametrize("objective", ["itemized_clip", "smartclip"])
def test_resumed_run_equals_an_undisturbed_one(processor, base, tmp_path, objective):  # noqa: F811
    settings = {
        "lora": {"preset": "both", "dropout": 0.1},
        "objective": objective,
        "save_strategy": "steps",
        "save_steps": 2,
        "cached_micro_batch_size": 3,
    }
    whole = trained(processor, base, tmp_path / "run", **settings)
    resumed = make_trainer(processor, tmp_path / "run", model=load(base, "cpu")[0], **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name
    small = (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").stat().st_size
    assert small < 3 * sum(4 * p.numel() for p in whole.model.parameters() if p.requires_grad) + 100_000


def test_best_model_at_the_end(processor, base, tmp_path):  # noqa: F811
    args = ItemizedCLIPTrainingArguments(
        output_dir=str(tmp_path / "run"),
        lora="vision",
        max_steps=4,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        learning_rate=0.5,  # gets worse
        max_items=3,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = ItemizedCLIPTrainer(
        load(base, "cpu")[0],
        args,
        train_dataset=dataset(16),
        eval_dataset=dataset(8, seed=1),
        processing_class=processor,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None and not best.endswith("-4")
    weights = load_file(Path(best) / "adapter_model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, weights["base_model.model." + name.replace(".default.", ".")]), name


def test_cached_features_with_adapters(tmp_path):
    torch.manual_seed(0)
    model = ItemizedCLIPModel(tiny_config(use_scan_name_encoder=True, scan_name_hidden_size=32)).double().train()
    add_lora(model, {"preset": "both", "targets": None})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.1)
    objective = load_objective("itemized_clip")
    objective.attach(model)
    batch = make_batch(objective)
    compare(loss_and_gradients(model, batch), loss_and_gradients(model, batch, 4), 1e-9)


def test_settings_that_contradict_are_refused(processor, base, tmp_path, monkeypatch):  # noqa: F811
    def arguments(**settings):
        return ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), **settings)

    assert arguments(lora='{"preset": "text", "rank": 2}').lora == {"preset": "text", "rank": 2}
    with pytest.raises(ValueError, match="preset is 'all', expected one of .*both"):
        arguments(lora="all")
    with pytest.raises(ValueError, match="takes no \\['r'\\]; it takes .*rank"):
        arguments(lora={"r": 4})
    with pytest.raises(ValueError, match="set freeze_text=false"):
        arguments(lora="both", freeze_text="except_layernorm")
    with pytest.raises(ValueError, match="no parameter has a name.*'item_poolr'"):
        make_trainer(processor, tmp_path, model=load(base, "cpu")[0], lora={"trainable": ["item_poolr"]})
    trainer = make_trainer(
        processor, tmp_path, model=load(base, "cpu")[0], lora="vision", freeze_text="except_layernorm"
    )
    left = {n for n, p in trainer.model.named_parameters() if p.requires_grad and n.startswith("text_model.")}
    assert left and all("LayerNorm" in name for name in left)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"itemized-clip-hf\[lora\]"):
        add_lora(load(base, "cpu")[0], "text")


@pytest.mark.parametrize("mode", [False, True, "except_layernorm"])
def test_freeze_vision(processor, base, tmp_path, mode):  # noqa: F811
    before = load(base, "cpu")[0].state_dict()
    trainer = trained(processor, base, tmp_path / "run", freeze_vision=mode, weight_decay=0.1)
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    vision = {name for name, _ in trainer.model.named_parameters() if name.startswith("vision_model.")}
    norms = {name for name in vision if "layer_norm" in name}
    assert bool(moved & (vision - norms)) == (mode is False)
    assert (moved & norms == norms) == (mode is not True)
    assert "visual_projection.weight" in moved and [name for name in moved if name.startswith("text_model.")]
    with pytest.raises(ValueError, match="freeze_vision"):
        ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), freeze_vision="partly")


def test_merge_command(processor, base, tmp_path):  # noqa: F811
    from click.testing import CliRunner

    from itemized_clip_hf.cli.merge import command

    trainer = trained(processor, base, tmp_path / "run", lora="both")
    trainer.save_model(str(tmp_path / "run"))
    done = CliRunner().invoke(command, ["-m", str(tmp_path / "run"), "-o", str(tmp_path / "merged"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.strip().splitlines()[-1])["parameters"] == load(base, "cpu")[0].num_parameters()
    merged, again = load(tmp_path / "merged", "cpu")
    torch.testing.assert_close(scores(merged, trainer), scores(trainer.model, trainer), rtol=1e-5, atol=1e-5)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    done = CliRunner().invoke(command, ["-m", str(base), "-o", str(tmp_path / "no")])
    assert done.exit_code != 0 and "holds no adapters" in done.output


def lora_rank(rank: int, world: int, port: int, folder: str):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    start(rank, world, port)
    model, of_base = load(Path(folder) / "base", "cpu")
    trainer = make_trainer(
        of_base,
        Path(folder) / "run",
        model=model,
        lora="both",
        cached_micro_batch_size=2,
        per_device_train_batch_size=4,
        ddp_find_unused_parameters=False,
        max_steps=2,
    )
    trainer.train()
    trainer.save_model(str(Path(folder) / "run"))
    mine = torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
    theirs = mine.clone()
    dist.broadcast(theirs, 0)
    assert torch.equal(mine, theirs), "the ranks' models differ"
    if rank == 0:
        merged, _ = load(Path(folder) / "run", "cpu")
        torch.testing.assert_close(scores(merged, trainer), scores(trainer.model, trainer), rtol=1e-5, atol=1e-5)
    dist.barrier()
    leave_group()


@pytest.mark.slow
def test_two_processes(base, tmp_path):
    spawn(lora_rank, (2, free_port(), str(tmp_path)), 2)
