"""The Trainer: learns, logs every term, freezes, clamps, decays, accumulates, resumes."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_models import ITEMS, SUPPORT, tiny_config
from trainers import dataset, make_trainer
from transformers import AutoModel

from itemized_clip_hf import (
    ItemizedCLIPModel,
    ItemizedCLIPTrainer,
    ItemizedCLIPTrainingArguments,
)
from itemized_clip_hf.recipes import load_recipe, without_foreign_weights
from itemized_clip_hf.trainer.collator import ItemizedCLIPCollator
from itemized_clip_hf.trainer.objectives import StudyTextObjective, available_objectives, load_objective
from itemized_clip_hf.trainer.sampler import SeededSampler


def test_learns_and_logs_every_term(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, max_steps=60, learning_rate=5e-3, logging_steps=10)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"loss_ila", "loss_kta", "loss_iis", "loss_mps", "logit_scale", "logit_bias"} <= set(logs[0])
    assert float(logs[-1]["loss"]) < 0.75 * float(logs[0]["loss"])
    weights = trainer.objective
    total = sum(
        getattr(weights, f"{name}_weight") * float(logs[2][f"loss_{name}"]) for name in ("ila", "kta", "iis", "mps")
    )
    assert abs(total - float(logs[2]["loss"])) < 2e-3 * total


@pytest.mark.parametrize("objective", available_objectives())
def test_every_objective_trains_by_its_name(processor, tmp_path, objective):
    trainer = make_trainer(processor, tmp_path, objective=objective, max_steps=2)
    before = trainer.model.visual_projection.weight.detach().clone()
    slots = {trainer.data_collator(dataset()[:3])["input_ids"].shape[1]}
    joins = isinstance(trainer.objective, StudyTextObjective)
    assert slots == ({1} if joins else {trainer.args.max_items})
    trainer.train()
    assert np.isfinite(float(trainer.state.log_history[0]["loss"]))
    assert not torch.equal(before, trainer.model.visual_projection.weight)
    assert np.isfinite(trainer.evaluate(dataset(8, seed=1))["eval_loss"])
    logged = set().union(*trainer.state.log_history)
    assert {name for name in logged if name.startswith("loss_")} and {n for n in logged if n.startswith("eval_loss_")}
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    idle = [name for name, p in trainable.items() if id(p) not in {id(q) for q in with_gradient(trainer)}]
    assert not idle, f"would stall distributed training: {idle}"


def with_gradient(trainer):
    """Parameters that one batch gives a gradient, be it zero."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model.train(), trainer.data_collator(dataset()[:8])).backward()
    return [p for p in trainer.model.parameters() if p.grad is not None]


def test_text_of_a_study(processor, tmp_path):
    """All items, whatever `max_items` and the sampling of captions say; the prefix is the domain's."""
    rows = [{**row, "items": ITEMS[:3]} for row in dataset(8)]
    trainer = make_trainer(
        processor, tmp_path, objective="clip", rows=rows, max_items=1, diverse_sampling={"max_merged": 3}
    )
    expected = processor(text=[[". ".join(ITEMS[:3])]])["input_ids"][0, 0].tolist()
    for batch in (next(iter(trainer.get_train_dataloader())), trainer.data_collator(rows)):
        assert batch["input_ids"].tolist() == [[expected]] * 8
    for domain, prefix in (
        ("brain-mri", "This MRI study shows: "),
        ("chest-ct", ""),
        ("head-ct", "This study shows: "),
    ):
        model = ItemizedCLIPModel(tiny_config())
        model.config.domain = domain
        trainer = make_trainer(processor, tmp_path, model=model, objective="hlip")
        assert trainer.data_collator.join_items(["a", "b"]) == prefix + "a b"
    seen = {tuple(trainer.train_dataset.prepare({**rows[0], "seed": seed}).items) for seed in range(40)}
    assert len(seen) == 6


def test_own_collator_joins_too(processor, tmp_path):
    collator = ItemizedCLIPCollator(processor, max_items=3, max_scans=2)
    args = ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), objective="siglip", use_cpu=True)
    trainer = ItemizedCLIPTrainer(ItemizedCLIPModel(tiny_config()), args, data_collator=collator)
    assert trainer.data_collator(dataset()[:3])["item_mask"].tolist() == [[True]] * 3
    assert collator.join_items is None


def test_mask_network_has_its_own_rate_and_schedule(processor, tmp_path):
    trainer = make_trainer(
        processor,
        tmp_path,
        objective="smartclip",
        objective_weights={"mask_learning_rate": 0.02},
        weight_decay=0.3,
        warmup_steps=4,
    )
    own = {id(p) for p in trainer.model.objective_module.parameters()}
    trainer.create_optimizer()
    *others, group = trainer.optimizer.param_groups
    assert {id(p) for p in group["params"]} == own and group["lr"] == 0.02 and group["weight_decay"] == 0
    assert not own & {id(p) for other in others for p in other["params"]}
    trainer.create_scheduler(10)
    first = [g["lr"] for g in trainer.optimizer.param_groups]
    assert first == pytest.approx([trainer.args.learning_rate / 4] * 2 + [0.02])
    before = {name: p.detach().clone() for name, p in trainer.model.objective_module.named_parameters()}
    trainer.train()
    moved = {n for n, p in trainer.model.objective_module.named_parameters() if not torch.equal(p, before[n])}
    # The score's bias shifts all tokens alike.
    assert {name for name in before if name != "score.bias"} <= moved
    assert trainer.model.logit_scale.exp().item() == pytest.approx(100)


def test_mask_network_does_not_depend_on_what_was_drawn_before(processor, tmp_path):
    weights = []
    for seed in (1, 2):
        model = ItemizedCLIPModel(tiny_config())
        torch.manual_seed(seed)
        args = ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), objective="smartclip", use_cpu=True)
        trainer = ItemizedCLIPTrainer(model, args, processing_class=processor)
        weights.append(trainer.model.objective_module.score.weight)
    assert torch.equal(*weights)


def test_exported_folder_loads_without_the_mask_network(processor, tmp_path, messages):
    """Nothing is missing, left over or warned about, and the scores are those of the trained model."""

    trainer = make_trainer(processor, tmp_path, objective="smartclip")
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    messages.clear()
    loaded, report = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not messages and not any(report.values()), (messages, report)
    assert not hasattr(loaded, "objective_module")
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name)), name


def test_another_objective_does_not_inherit_the_weights_of_a_recipe():
    recipe = load_recipe("remote-sensing")
    assert "objective_weights" in recipe.training
    for changes in ({"objective": "clip"}, {"objective": "mps", "max_items": 2}):
        assert "objective_weights" not in without_foreign_weights(recipe.training, changes)
    for changes in ({}, {"objective": "itemized_clip"}):
        assert without_foreign_weights(recipe.training, changes) == recipe.training
    recipe.variants["baseline"] = {"training": {"objective": "flair", "objective_weights": {"tcs_weight": 0.4}}}
    assert recipe.variant("baseline").training["objective_weights"] == {"tcs_weight": 0.4}


@pytest.mark.parametrize("mode", [False, True, "except_layernorm"])
def test_freeze_text(processor, tmp_path, mode):
    trainer = make_trainer(processor, tmp_path, freeze_text=mode, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    text = {name for name in before if name.startswith("text_model.")}
    norms = {name for name in text if "LayerNorm" in name}
    # Position and type embeddings of unused rows and the key biases get no gradient whatever the mode.
    assert bool(moved & (text - norms)) == (mode is False)
    assert (moved & norms == norms) == (mode is not True)
    assert "text_projection.weight" in moved


def test_scale_is_clamped(processor, tmp_path):
    for start, expected in ((9.0, math.log(100)), (-2.0, 0.0)):
        model = ItemizedCLIPModel(tiny_config())
        with torch.no_grad():
            model.logit_scale.fill_(start)
        trainer = make_trainer(processor, tmp_path, model=model, learning_rate=1e-9, max_steps=1)
        trainer.train()
        assert trainer.model.logit_scale.item() == pytest.approx(expected)


def test_no_decay_on_norms_biases_and_scale(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, weight_decay=0.3)
    trainer.create_optimizer()
    groups = {group["weight_decay"]: {id(p) for p in group["params"]} for group in trainer.optimizer.param_groups}
    for name, parameter in trainer.model.named_parameters():
        plain = name.endswith("bias") or "norm" in name.lower() or name.startswith("logit_")
        if plain:
            assert id(parameter) in groups[0.0], name
        elif parameter.ndim >= 2:
            assert id(parameter) in groups[0.3], name
    assert trainer.optimizer.defaults["betas"] == (0.9, 0.98)


def test_schedule(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, learning_rate=1.0, warmup_steps=4)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(10)
    rates = []
    for _ in range(11):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        scheduler.step()
    expected = [(s + 1) / 4 if s < 4 else 0.5 * (1 + np.cos(np.pi * (s - 4) / 6)) for s in range(11)]
    np.testing.assert_allclose(rates, expected, atol=1e-9)


def test_accumulation_averages(processor, tmp_path):
    """The step of two micro-batches is the mean of the steps that each would make alone."""

    def step(rows, accumulate):
        trainer = make_trainer(
            processor,
            tmp_path,
            rows=rows,
            max_steps=1,
            gradient_accumulation_steps=accumulate,
            per_device_train_batch_size=4,
            optim="sgd",
            learning_rate=1e-3,
            warmup_steps=0,
            objective="mps",
            weight_decay=0.0,
            max_scans=3,
        )
        before = trainer.model.visual_projection.weight.detach().clone()
        trainer.train()
        return before - trainer.model.visual_projection.weight.detach(), trainer

    rows = dataset(8)
    both, trainer = step(rows, 2)
    order = [index for index, _ in SeededSampler(8, 0)]
    halves = [step([rows[i] for i in order[k : k + 4]], 1)[0] for k in (0, 4)]
    torch.testing.assert_close(both, (halves[0] + halves[1]) / 2, atol=1e-6, rtol=1e-3)


def test_class_token_of_volumes_is_decayed(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path)
    assert "vision_model.embeddings.class_embedding" in trainer.get_decay_parameter_names(trainer.model)


def test_evaluation_is_repeatable_and_complete(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, per_device_eval_batch_size=4)
    rows = dataset(6, seed=1)
    assert len(trainer.get_eval_dataloader(rows)) == 2 and trainer.args.dataloader_drop_last
    state = torch.get_rng_state()
    first, second = (trainer.evaluate(rows)["eval_loss"] for _ in range(2))
    assert first == second and torch.equal(state, torch.get_rng_state())


def test_bad_studies_do_not_end_a_run(processor, tmp_path):
    rows = dataset(12)
    rows[3] = {"id": "gone", "images": [str(tmp_path / "gone.nii.gz")], "items": ITEMS[:1]}
    rows[5] = {"id": "mute"}
    trainer = make_trainer(processor, tmp_path / "run", rows=rows, per_device_train_batch_size=1, max_steps=12)
    trainer.train()
    assert trainer.state.global_step == 12 and trainer.studies_left_out == 2


def test_unknown_settings_are_named(processor, tmp_path):
    with pytest.raises(ValueError, match="no objective 'flare'.*flair"):
        make_trainer(processor, tmp_path, objective="flare")
    with pytest.raises(ValueError, match="takes no \\['kta'\\]"):
        load_objective("itemized_clip", kta=1)
    with pytest.raises(ValueError, match="freeze_text"):
        ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), freeze_text="partly")


def test_evaluation_loss(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path)
    metrics = trainer.evaluate(dataset(8, seed=1))
    assert np.isfinite(metrics["eval_loss"])
    assert any("eval_loss_ila" in entry for entry in trainer.state.log_history)


def test_default_loss_uses_the_domain(processor):
    """Without a Trainer, `return_loss=True` is ItemizedCLIP with the weights of the model's domain."""
    config = tiny_config()
    config.domain = "head-ct"
    torch.manual_seed(0)
    model = ItemizedCLIPModel(config).eval()
    inputs = processor(
        images=[[torch.randn(6, 16, 16)], [torch.randn(6, 16, 16)]], text=[ITEMS[:2], ITEMS[2:3]], return_tensors="pt"
    )
    torch.manual_seed(1)
    out = model(**inputs, return_loss=True)
    expected = out.loss_terms["ila"] + 0.1 * out.loss_terms["mps"] + out.loss_terms["kta"] + out.loss_terms["iis"]
    torch.testing.assert_close(out.loss.detach(), expected)


def run_in_process(*arguments):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; torch.set_num_threads(1)\n"
        "from trainers import resume_run\n"
        "resume_run(*sys.argv[2:])\n"
    )
    command = [sys.executable, "-c", script, str(SUPPORT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done


@pytest.mark.parametrize("objective", ["itemized_clip", pytest.param("smartclip", marks=pytest.mark.slow)])
def test_killed_and_resumed_run_equals_an_undisturbed_one(tmp_path, objective):
    """Bitwise: same scans, items, negatives, token masks and dropped paths after the restart, and the same mask network."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run_in_process(whole, 0, False, objective)
    assert done.returncode == 0, done.stderr[-2000:]
    assert run_in_process(broken, 5, False, objective).returncode == 9
    done = run_in_process(broken, 0, True, objective)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((whole / "losses.json").read_text()) == json.loads((broken / "losses.json").read_text())
    expected, got = torch.load(whole / "final.pt"), torch.load(broken / "final.pt")
    assert any("objective_module" in name for name in expected) == (objective == "smartclip")
    for name in expected:
        assert torch.equal(expected[name], got[name]), name
