"""The Trainer of heads: what is frozen, rates of layers, adapters, bad studies, and runs that go on."""

import csv
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from heads import bright_studies, make_classifier, make_trainer
from transformers import Trainer, TrainerCallback, TrainingArguments

from itemized_clip_hf import ItemizedCLIPForImageClassification, ItemizedCLIPProcessor
from itemized_clip_hf.trainer.interrupts import Interrupts, TrainingInterruptedError
from itemized_clip_hf.trainer.supervised.arguments import SupervisedArguments
from itemized_clip_hf.trainer.supervised.labels import ClassificationCollator
from itemized_clip_hf.trainer.supervised.run import supervised_arguments, train_in_folder


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_a_head_learns_and_is_saved_with_its_processor(processor, tmp_path):
    trainer = make_trainer(tmp_path, processor, max_steps=30, evaluate=bright_studies(8, seed=1))
    trainer.train()
    trainer.save_model()
    found = trainer.predict(bright_studies(8, seed=1))
    assert found.predictions.shape == (8, 3) and np.isfinite(found.metrics["test_loss"])
    bright = found.label_ids[:, 0] == 1
    assert found.predictions[bright, 0].min() > found.predictions[~bright, 0].max()
    again = ItemizedCLIPForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(weights(again), weights(trainer.model))
    assert again.label_names == ["bright", "striped", "dark"]
    assert ItemizedCLIPProcessor.from_pretrained(tmp_path).preprocessing() == again.config.preprocessing


@pytest.mark.parametrize("kind", ["multi", pytest.param("single", marks=pytest.mark.slow)])
def test_the_plain_trainer_of_the_library(processor, tmp_path, kind):
    """No argument of it has to be changed: examples are what the processor returns, with labels."""
    studies = bright_studies(12)
    rows = [
        {"pixel_values": s["pixel_values"], "labels": s["labels"] if kind == "multi" else int(s["labels"][0])}
        for s in studies
    ]
    problem = "multi_label_classification" if kind == "multi" else "single_label_classification"
    model = make_classifier(
        labels=["bright", "striped", "dark"] if kind == "multi" else ["dark", "bright"], problem_type=problem
    )
    args = TrainingArguments(
        str(tmp_path),
        max_steps=30,
        learning_rate=3e-3,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    found = trainer.predict(rows)
    assert found.metrics["test_loss"] < 0.7 * before
    scores = found.predictions[:, 0] if kind == "multi" else found.predictions[:, 1]
    assert scores[1::2].min() > scores[::2].max()


def test_a_frozen_tower_stays_and_the_rest_moves(processor, tmp_path):
    trainer = make_trainer(tmp_path, processor, freeze_vision=True, max_steps=2)
    before = weights(trainer.model)
    trainer.train()
    changed = {name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])}
    assert {"label_queries", "logit_bias", "visual_projection.weight"} <= changed
    assert not any(name.startswith("vision_model") for name in changed)


def test_layers_have_rates_of_their_own(processor, tmp_path):
    """Three layers: embeddings at decay ** 3, the last layer and all above it at the whole rate."""
    trainer = make_trainer(tmp_path, processor, layer_decay=0.5, learning_rate=0.8, warmup_steps=0, max_steps=8)
    trainer.create_optimizer_and_scheduler(8)
    rates, decays = {}, {}
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]], decays[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert set(rates) == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert rates["vision_model.embeddings.patch_embedding.weight"] == pytest.approx(0.1)
    assert rates["vision_model.encoder.layers.0.mlp.fc1.weight"] == pytest.approx(0.2)
    assert rates["vision_model.encoder.layers.1.layer_norm1.bias"] == pytest.approx(0.4)
    for name in (
        "vision_model.encoder.layers.2.mlp.fc1.weight",
        "vision_model.final_layer_norm.weight",
        "label_queries",
    ):
        assert rates[name] == pytest.approx(0.8)
    assert decays["vision_model.encoder.layers.0.mlp.fc1.weight"] == 0.05 and decays["logit_bias"] == 0
    assert {round(rate, 6) for rate in trainer.lr_scheduler.base_lrs} == {0.1, 0.2, 0.4, 0.8}


def test_adapters_are_merged_into_the_saved_model(processor, tmp_path):
    pytest.importorskip("peft")
    trainer = make_trainer(
        tmp_path, processor, lora={"preset": "vision", "rank": 2}, max_steps=3, save_strategy="steps", save_steps=2
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "adapter_model.safetensors").exists()
    loaded = ItemizedCLIPForImageClassification.from_pretrained(tmp_path).eval()
    study = {"pixel_values": bright_studies(2)[1]["pixel_values"][None]}
    trained = trainer.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**study).logits, trained(**study).logits, rtol=1e-5, atol=1e-5)
    moved = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    assert any(".lora_" in name for name in moved) and "label_queries" in moved
    assert not [name for name in moved if name.startswith("vision_model") and ".lora_" not in name]


@pytest.mark.parametrize("lora", [pytest.param(None, marks=pytest.mark.slow), "vision"])
def test_a_run_that_goes_on_ends_as_an_undisturbed_one(processor, tmp_path, lora):
    pytest.importorskip("peft")
    settings = {"max_steps": 5, "lora": lora, "save_strategy": "steps", "save_steps": 3, "layer_decay": 0.7}
    whole = make_trainer(tmp_path / "whole", processor, **settings)
    whole.train()
    first = tmp_path / "whole" / "checkpoint-3"
    other = make_trainer(tmp_path / "other", processor, **settings)
    other.train(resume_from_checkpoint=str(first))
    for name, value in weights(whole.model).items():
        torch.testing.assert_close(weights(other.model)[name], value, rtol=0, atol=0, msg=name)


def test_a_bad_study_is_listed_and_its_row_stays_in_an_evaluation(processor, tmp_path):
    studies = bright_studies(5)
    studies[3] = {"id": "gone", "images": str(tmp_path / "no.nii.gz"), "labels": studies[3]["labels"]}
    trainer = make_trainer(tmp_path, processor, train=studies, max_steps=6, per_device_eval_batch_size=1)
    trainer.train()
    found = trainer.predict(studies)
    assert found.predictions.shape == (5, 3)
    assert np.isnan(found.label_ids).all(1).tolist() == [False, False, False, True, False]
    with (tmp_path / "quarantine.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["study", "reason"] and [row[0] for row in rows[1:]] == ["gone/no.nii.gz", "gone"]
    assert trainer.studies_left_out == 1


class OneUnreadable(list):
    """Studies of which one cannot even be taken from the list."""

    def __getitem__(self, index):
        if index == 1:
            raise ValueError("row 2 of the list holds text that is not UTF-8: it is damaged.")
        return super().__getitem__(index)

    def id_of(self, index):
        return f"study-{index}"


def test_a_study_that_cannot_be_taken_from_the_list(processor, tmp_path):
    studies = OneUnreadable(bright_studies(4))
    trainer = make_trainer(tmp_path, processor, train=studies, evaluate=studies, max_steps=2, eval_strategy="epoch")
    trainer.train()
    assert np.isnan(trainer.predict(studies).label_ids).all(1).tolist() == [False, True, False, False]
    assert (tmp_path / "quarantine.csv").read_text().splitlines()[1].startswith("study-1,row 2 of the list")


def test_what_cannot_work_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="layer_decay is 1.5"):
        SupervisedArguments(output_dir=str(tmp_path), layer_decay=1.5)
    with pytest.raises(ValueError, match="no effect on a frozen"):
        SupervisedArguments(output_dir=str(tmp_path), layer_decay=0.5, freeze_vision=True)
    with pytest.raises(ValueError, match="no text tower"):
        make_trainer(tmp_path, processor, freeze_text=True)
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1 does not work here"):
        make_trainer(tmp_path, processor, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="no training arguments"):
        supervised_arguments(tmp_path, {"objective": "clip"})
    flip = {"transforms": [{"RandFlipd": {"prob": 0.5, "spatial_axis": "left-right"}}], "swap_sides": True}
    with pytest.raises(ValueError, match="done by the collator"):
        make_trainer(tmp_path, processor, augmentation=flip)
    with pytest.raises(ValueError, match="mirrors studies"):
        ClassificationCollator(processor, num_labels=3, augmentation=SimpleNamespace(mirror_prob=0.5))
    with pytest.raises(ValueError, match="not one batch"):
        make_trainer(tmp_path, processor, train=bright_studies(2), dataloader_drop_last=True).train()


class PressCtrlC(TrainerCallback):
    """After the second step."""

    def __init__(self, interrupts: Interrupts):
        self.interrupts = interrupts

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.interrupts._hear(signal.SIGINT, None)


def test_a_run_in_its_folder_is_ended_by_a_signal_and_goes_on(processor, tmp_path, capfd):
    folder, interrupts = tmp_path / "run", Interrupts()
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 50}

    def build(callbacks=()):
        return make_trainer(folder, processor, keywords={"callbacks": list(callbacks)}, **settings)

    with pytest.raises(TrainingInterruptedError, match="after step 2; the last checkpoint is .*--resume"):
        train_in_folder(lambda: build([PressCtrlC(interrupts)]), folder, interrupts=interrupts)
    assert "finishing this step" in capfd.readouterr().err and not (folder / "model.safetensors").exists()
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run, up to step 2"):
        train_in_folder(build, folder)
    trainer = train_in_folder(build, folder, resume=True)
    assert trainer.state.global_step == 3 and (folder / "model.safetensors").exists()


def test_the_class_token_starts_from_zeros(processor, tmp_path):
    model = make_classifier(head="class_token")
    trainer = make_trainer(tmp_path, processor, model=model, max_steps=1)
    first = trainer.predict(bright_studies(4))
    assert not first.predictions.any()
    trainer.train()
    assert trainer.predict(bright_studies(4)).predictions.any()
