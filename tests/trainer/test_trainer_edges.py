"""What used to go wrong without a word: evaluations that mix, batches that are lost, runs that train nothing."""

import json
import resource
import shutil
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny_models import ITEMS, TRAINING, tiny_config
from torch.utils.data import IterableDataset
from trainers import dataset, make_trainer
from transformers import AutoModel, AutoProcessor, TrainerCallback

from itemized_clip_hf import (
    ItemizedCLIPModel,
    ItemizedCLIPProcessor,
    ItemizedCLIPTrainer,
    ItemizedCLIPTrainingArguments,
)
from itemized_clip_hf.trainer.checkpoints import last_complete_checkpoint
from itemized_clip_hf.trainer.interrupts import Interrupts
from itemized_clip_hf.trainer.output_folder import checkpoint_to_resume
from itemized_clip_hf.trainer.used_folder import CHECKPOINT, STATE, require_unused


def terms(metrics: dict, prefix: str) -> dict:
    return {name: value for name, value in metrics.items() if name.startswith(f"{prefix}_loss")}


def test_terms_are_those_of_their_own_evaluation(processor, tmp_path):  # noqa: F811
    """As a Trainer reports that has seen nothing else; weighted, they add up to the loss, the last smaller batch included."""
    sets = {"a": dataset(7, seed=1), "b": dataset(9, seed=2)}
    alone = {}
    for name, rows in sets.items():
        found = make_trainer(processor, tmp_path, per_device_eval_batch_size=4).evaluate(rows)
        alone[name] = {key.replace("eval_", f"eval_{name}_"): value for key, value in terms(found, "eval").items()}
        assert len(alone[name]) == 5
    trainer = make_trainer(processor, tmp_path, per_device_eval_batch_size=4)
    trainer.evaluate(dataset(6, seed=3), metric_key_prefix="test")
    trainer.predict(dataset(5, seed=4))
    trainer.eval_dataset = sets
    found = trainer.evaluate()
    for name in sets:
        assert terms(found, f"eval_{name}") == pytest.approx(alone[name], rel=1e-6)
        total = sum(
            getattr(trainer.objective, f"{term}_weight") * found[f"eval_{name}_loss_{term}"]
            for term in ("ila", "kta", "iis", "mps")
        )
        assert total == pytest.approx(found[f"eval_{name}_loss"], rel=1e-4)
    logged = [entry for entry in trainer.state.log_history if "eval_a_loss" in entry]
    assert terms(logged[-1], "eval_a") == terms(found, "eval_a") and not terms(logged[-1], "eval_b")


def test_prefixes_and_predictions(processor, tmp_path):  # noqa: F811
    trainer = make_trainer(processor, tmp_path, per_device_eval_batch_size=4)
    metrics = trainer.evaluate(dataset(9, seed=1), metric_key_prefix="held_out")
    predicted = trainer.predict(dataset(9, seed=1), metric_key_prefix="unseen")
    assert len(predicted.predictions[0]) == 9
    assert terms(metrics, "held_out") == pytest.approx(
        {key.replace("unseen", "held_out"): value for key, value in terms(predicted.metrics, "unseen").items()},
        rel=1e-6,
    )
    assert not any("eval" in key for key in {**metrics, **predicted.metrics})


def test_evaluation_during_training_keeps_the_terms_of_training(processor, tmp_path):  # noqa: F811
    histories = []
    for often in (False, True):
        trainer = make_trainer(processor, tmp_path / str(often), logging_steps=2)

        trainer.eval_dataset, trainer.args.eval_steps = {"x": dataset(5, seed=1)}, 1
        trainer.args.eval_strategy = "steps" if often else "no"
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "loss" in entry]
        histories.append([{name: value for name, value in e.items() if name.startswith("loss")} for e in entries])
    assert histories[0] == histories[1]


def test_evaluators_with_several_sets(processor, tmp_path):  # noqa: F811
    calls = []

    def evaluator(model, processor):
        calls.append(model.training)
        return {"own": 0.5}

    trainer = make_trainer(processor, tmp_path, evaluators=[evaluator])
    trainer.eval_dataset = {"a": dataset(4), "b": dataset(5)}
    metrics = trainer.evaluate()
    assert metrics["eval_own"] == 0.5 and {"eval_a_loss", "eval_b_loss"} <= set(metrics) and len(calls) == 1


def test_workers_that_stay_read_what_is_passed(processor, tmp_path):  # noqa: F811
    """The library gives the first loader again."""
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "per_device_eval_batch_size": 4}
    trainer = make_trainer(processor, tmp_path, **settings)
    trainer.eval_dataset = dataset(6, seed=1)
    first = trainer.evaluate()["eval_loss"]
    other = trainer.evaluate(dataset(9, seed=2))["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == first
    assert (
        other
        == make_trainer(processor, tmp_path, per_device_eval_batch_size=4).evaluate(dataset(9, seed=2))["eval_loss"]
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"per_device_train_batch_size": 16}, "10 studies and a batch takes 16 studies.*per_device_train_batch_size"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"max_steps": -1, "num_train_epochs": 0}, "num_train_epochs is 0"),
    ],
)
def test_runs_that_would_train_nothing(processor, tmp_path, settings, says):  # noqa: F811
    trainer = make_trainer(processor, tmp_path / "run", rows=dataset(10), **settings)
    with pytest.raises(ValueError, match=says):
        trainer.train()
    assert not list(tmp_path.glob("run/*"))


def test_an_incomplete_batch_can_be_trained_on(processor, tmp_path):  # noqa: F811
    settings = {"per_device_train_batch_size": 16, "dataloader_drop_last": False, "max_steps": 1}
    trainer = make_trainer(processor, tmp_path, rows=dataset(10), **settings)
    trainer.train()
    assert trainer.state.global_step == 1


def test_model_init(processor, tmp_path):  # noqa: F811
    """Every training starts from the same model with the objective in it, as a Trainer with that model."""

    def build():
        torch.manual_seed(0)
        return ItemizedCLIPModel(tiny_config())

    def train(**model):
        args = ItemizedCLIPTrainingArguments(
            output_dir=str(tmp_path), **{**TRAINING, "max_steps": 2, "objective": "smartclip", "freeze_text": True}
        )
        return ItemizedCLIPTrainer(args=args, train_dataset=dataset(), processing_class=processor, **model)

    expected = train(model=build())
    expected.train()
    trainer = train(model_init=build)
    for _ in range(2):
        trainer.train()
        state = trainer.model.state_dict()
        assert any("objective_module" in name for name in state)
        assert not any(p.requires_grad for p in trainer.model.text_model.parameters())
        assert all(torch.equal(state[name], value) for name, value in expected.model.state_dict().items())
    trainer.args.learning_rate *= 10
    trainer.train()
    assert not torch.equal(trainer.model.visual_projection.weight, expected.model.visual_projection.weight)
    for wrong in ({}, {"model": build(), "model_init": build}):
        with pytest.raises(ValueError, match="a model or model_init"):
            train(**wrong)


def test_a_search_changes_what_it_can(processor, tmp_path):  # noqa: F811
    from transformers.trainer_utils import HPSearchBackend

    class Trial:
        params: ClassVar[dict] = {}

    args = ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), **{**TRAINING, "max_steps": 1})
    trainer = ItemizedCLIPTrainer(
        args=args,
        train_dataset=dataset(),
        processing_class=processor,
        model_init=lambda trial: ItemizedCLIPModel(tiny_config()),
    )
    space = {"learning_rate": 0.5, "per_device_train_batch_size": 4}
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: space
    trainer._hp_search_setup(Trial())
    trainer.train()
    assert trainer.args.learning_rate == 0.5 and trainer.state.train_batch_size == 4
    space = {"objective": "clip"}
    with pytest.raises(ValueError, match="cannot change \\['objective'\\]"):
        trainer._hp_search_setup(Trial())


def test_what_could_only_be_ignored(processor, tmp_path):  # noqa: F811
    class Endless(IterableDataset):
        def __iter__(self):
            yield from dataset(1)

    model = ItemizedCLIPModel(tiny_config())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    args = {"output_dir": str(tmp_path), "use_cpu": True}
    for settings, passed, says in (
        ({}, {"compute_loss_func": lambda *args: 0}, "compute_loss_func"),
        ({}, {"train_dataset": Endless()}, "train_dataset has no length"),
        ({"muon_learning_rate": 1e-3}, {"optimizers": (optimizer, None)}, "muon_learning_rate"),
    ):
        with pytest.raises(ValueError, match=says):
            ItemizedCLIPTrainer(
                model, ItemizedCLIPTrainingArguments(**args, **settings), processing_class=processor, **passed
            )


SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def test_resume_asks_for_the_whole_checkpoint(processor, tmp_path):  # noqa: F811
    """One that was cut off is left aside; one without optimizer is refused, as is none at all."""
    trainer = make_trainer(processor, tmp_path, **SAVING)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    expected = trainer.model.state_dict()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 1')
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-2")
    trainer = make_trainer(processor, tmp_path, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run, up to step 4: pass --resume"):
        require_unused(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="no optimizer.pt .save_only_model.*warm-up"):
        make_trainer(processor, tmp_path, **SAVING).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="no such folder"):
        make_trainer(processor, tmp_path, **SAVING).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_a_finished_run_trains_no_further(processor, tmp_path):  # noqa: F811
    """Where the steps end within an epoch, the library would take one more."""
    settings = {**SAVING, "lr_scheduler_type": "constant"}
    trainer = make_trainer(processor, tmp_path, **settings)
    trainer.train()
    expected = trainer.model.state_dict()
    trainer = make_trainer(processor, tmp_path, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())


def test_a_model_without_checkpoints_is_not_trained_over(processor, tmp_path):  # noqa: F811
    trainer = make_trainer(processor, tmp_path, max_steps=1)
    require_unused(tmp_path)
    trainer.train()
    assert checkpoint_to_resume(tmp_path) is None
    trainer.save_model()
    with pytest.raises(ValueError, match="holds a model already"):
        require_unused(tmp_path)
    trainer.save_state()
    with pytest.raises(ValueError, match="a trained model and no checkpoint"):
        checkpoint_to_resume(tmp_path)


@pytest.mark.parametrize("strategy", ["no", "best", "epoch"])
def test_an_interrupted_run_saves_whatever_else_is_saved(processor, tmp_path, strategy):  # noqa: F811
    """Also without optimizer by the arguments, and where only the best is kept; the run that goes on is the undisturbed one."""
    settings = {"save_strategy": strategy, "save_only_model": True, "metric_for_best_model": "loss", "max_steps": 5}
    runs = []
    for name, stop in (("whole", None), ("cut", 2), ("cut", None)):
        trainer = make_trainer(processor, tmp_path / name, **settings)
        if strategy != "no":
            trainer.eval_dataset, trainer.args.eval_strategy = (
                dataset(4, seed=1),
                "steps" if strategy == "best" else "epoch",
            )
            trainer.args.eval_steps = trainer.state.eval_steps = 1
        interrupts = Interrupts()
        trainer.add_callback(interrupts)

        class Signal(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step + 1 == stop:  # noqa: B023
                    interrupts.number = 2  # noqa: B023

        trainer.add_callback(Signal())
        trainer.train(resume_from_checkpoint=len(runs) == 2)
        runs.append((trainer.state.global_step, trainer.model.state_dict()))
    assert [step for step, _ in runs] == [5, 2, 5]
    assert all(torch.equal(value, runs[0][1][name]) for name, value in runs[2][1].items())


def test_diverged_weights_are_not_saved(processor, tmp_path):  # noqa: F811
    trainer = make_trainer(processor, tmp_path, max_steps=1)
    with torch.no_grad():
        trainer.model.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="visual_projection.weight is NaN or infinite"):
        trainer.save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_a_full_disk_leaves_the_last_checkpoint(processor, tmp_path):  # noqa: F811
    trainer = make_trainer(processor, tmp_path, **SAVING)

    class Full(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))

    trainer.add_callback(Full())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            OSError, match="checkpoint-4 could not be written.*last checkpoint is .*checkpoint-2; make room"
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_order_of_windows_is_kept(tokenizer, tmp_path):
    """Which windows a step draws depends on it; folders whose windows were sorted get the order of the domain."""
    small = {"scan_size": [8, 16, 16], "in_plane_size": 16}
    made = ItemizedCLIPProcessor.from_domain("head-ct", tokenizer=tokenizer, **small)
    usual = ["BrainWindow", "BloodWindow", "BoneWindow"]
    assert list(made.image_processor.windows) == usual
    scan = np.random.default_rng(0).normal(0, 300, (8, 16, 16)).astype(np.float32)
    expected = made(images=[{"CT": scan}], return_tensors="pt")["pixel_values"]
    made.save_pretrained(tmp_path)
    for _ in range(2):
        loaded = ItemizedCLIPProcessor.from_pretrained(tmp_path)
        assert list(loaded.image_processor.windows) == usual and loaded.preprocessing() == made.preprocessing()
        assert loaded.image_processor.to_dict() == made.image_processor.to_dict()
        assert torch.equal(loaded(images=[{"CT": scan}], return_tensors="pt")["pixel_values"], expected)
        path = tmp_path / "processor_config.json"
        written = json.loads(path.read_text())
        written["image_processor"]["windows"] = dict(
            written["image_processor"]["windows"]
        )  # as earlier versions wrote them
        path.write_text(json.dumps(written, sort_keys=True))
    own = {"wide": [-1000, 1000], "narrow": [0, 80]}
    made = ItemizedCLIPProcessor.from_domain("head-ct", tokenizer=tokenizer, **small, windows=own)
    made.save_pretrained(tmp_path)
    assert list(AutoProcessor.from_pretrained(tmp_path).image_processor.windows) == ["wide", "narrow"]


def test_resumed_head_ct_equals_the_undisturbed_run(tokenizer, tmp_path):
    """Two of six scans are drawn a visit; model and processor come from the checkpoint."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "images": {n: generator.normal(0, 300, (8, 16, 16)).astype(np.float32) for n in ("A", "B")},
            "items": ITEMS[k % 3 :],
        }
        for k in range(10)
    ]
    small = {"scan_size": [8, 16, 16], "in_plane_size": 16}
    runs = {}
    for name in ("whole", "cut"):
        made = ItemizedCLIPProcessor.from_domain("head-ct", tokenizer=tokenizer, **small)
        trainer = make_trainer(made, tmp_path / name, rows=rows, per_device_train_batch_size=4, **SAVING)
        trainer.train()
        runs[name] = trainer.model.state_dict()
    checkpoint = tmp_path / "cut" / "checkpoint-2"
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    model, made = AutoModel.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)
    trainer = make_trainer(made, tmp_path / "cut", model=model, rows=rows, per_device_train_batch_size=4, **SAVING)
    trainer.train(resume_from_checkpoint=True)
    for name, value in runs["whole"].items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


def test_names_of_the_library_that_are_written_out():
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

    assert (CHECKPOINT, STATE) == (PREFIX_CHECKPOINT_DIR, TRAINER_STATE_NAME)
