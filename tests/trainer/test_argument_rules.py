"""Every training argument works, or is refused by name; none is ignored in silence."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from tiny_models import tiny_config
from trainers import dataset, make_trainer
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments
from itemized_clip_hf.recipes import load_recipe
from itemized_clip_hf.trainer.argument_rules import FOR_SCRIPTS, REFUSED
from itemized_clip_hf.trainer.from_recipe import build_arguments

TRIED_HERE = """
accelerator_config auto_find_batch_size batch_eval_metrics bf16 bf16_full_eval data_seed dataloader_multiprocessing_context
dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor eval_accumulation_steps
eval_delay eval_do_concat_batches eval_on_start eval_strategy eval_steps full_determinism greater_is_better ignore_data_skip
include_for_metrics load_best_model_at_end logging_first_step logging_nan_inf_filter lr_scheduler_kwargs lr_scheduler_type
max_grad_norm metric_for_best_model neftune_noise_alpha num_train_epochs optim optim_args per_device_eval_batch_size
prediction_loss_only restore_callback_states_from_checkpoint save_only_model save_total_limit skip_memory_metrics torch_compile
torch_compile_backend torch_compile_mode torch_empty_cache_steps activation_checkpointing activation_checkpointing_kwargs
gradient_checkpointing gradient_checkpointing_kwargs train_sampling_strategy
""".split()

TRIED_ELSEWHERE = """
output_dir per_device_train_batch_size max_steps learning_rate warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon
gradient_accumulation_steps dataloader_drop_last seed use_cpu logging_strategy logging_steps save_strategy save_steps
ddp_timeout ddp_backend ddp_find_unused_parameters fsdp fsdp_config deepspeed push_to_hub hub_token hub_private_repo
hub_model_id hub_strategy hub_always_push hub_revision report_to disable_tqdm local_rank
objective objective_weights freeze_text freeze_vision lora cached_micro_batch_size max_items max_scans scan_fill accept
diverse_sampling augmentation resident_pictures save_minutes muon_learning_rate muon_weight_decay hub_license
""".split()

THE_LIBRARY_ALONE = """
fp16 fp16_full_eval tf32 log_on_each_node log_level log_level_replica run_name project trackio_space_id trackio_bucket_id
trackio_static_space_id eval_use_gather_object save_on_each_node ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
""".split()
"""Of accelerators, several machines and services; nothing of this package is in their way."""


def test_every_argument_is_of_one_class():
    """A new one of the library has to be looked at."""
    known = {field.name for field in fields(ItemizedCLIPTrainingArguments)}
    partly = {"optim", "train_sampling_strategy"}  # some of their values are refused
    listed = [*TRIED_HERE, *TRIED_ELSEWHERE, *THE_LIBRARY_ALONE, *FOR_SCRIPTS, *(set(REFUSED) - partly)]
    assert not [name for name in listed if listed.count(name) > 1]
    own = {field.name for field in fields(ItemizedCLIPTrainingArguments)} - {f.name for f in fields(TrainingArguments)}
    assert not known - set(listed), "new arguments"
    # Older and newer versions of the library lack some, but none of this package's own.
    assert own <= set(listed)


VALUES = {
    "average_tokens_across_devices": False,
    "dataloader_in_order": False,
    "debug": ["underflow_overflow"],
    "enable_jit_checkpoint": True,
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels"],
    "label_smoothing_factor": 0.1,
    "length_column_name": "frames",
    "liger_kernel_config": {"rope": True},
    "optim": "lomo",
    "optim_target_modules": "all-linear",
    "parallelism_config": object(),
    "remove_unused_columns": True,
    "train_sampling_strategy": "group_by_length",
    "use_cache": True,
    "use_liger_kernel": True,
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_name(processor, tmp_path, name):  # noqa: F811
    args = ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    setattr(args, name, VALUES[name])
    with pytest.raises(ValueError, match=f"^{name}=.* does not work here: "):
        ItemizedCLIPTrainer(ItemizedCLIPModel(tiny_config()), args, processing_class=processor)


def test_refused_in_a_recipe(tmp_path):
    with pytest.raises(ValueError, match="resume_from_checkpoint.*--resume"):
        build_arguments(load_recipe("brain-mri"), tmp_path, {"resume_from_checkpoint": "x", "use_cpu": True})


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(processor, folder, **settings):  # noqa: F811
    trainer = make_trainer(processor, folder, **{"max_steps": 3, "logging_steps": 1, **settings})
    trainer.train()
    return trainer


PLAIN: list[float] = []


@pytest.fixture
def plain(processor, tmp_path):  # noqa: F811
    if not PLAIN:
        PLAIN.extend(losses(trained(processor, tmp_path / "plain")))
    return PLAIN


SAME = {
    "activation_checkpointing": {"activation_checkpointing": True},
    "compiled": {"torch_compile": True, "torch_compile_backend": "eager"},
    "deterministic": {"full_determinism": True},
    "eval_on_start": {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 2, "eval_delay": 1},
    "memory": {"skip_memory_metrics": False, "torch_empty_cache_steps": 1},
    "nan_filter": {"logging_nan_inf_filter": False, "logging_first_step": True},
    "workers": {
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 1,
        "dataloader_pin_memory": False,
        "dataloader_multiprocessing_context": "fork",
    },
    "split_batches": {"accelerator_config": {"split_batches": True, "non_blocking": False}},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "compiled" else ()) for n in SAME])
def test_these_do_not_change_training(processor, tmp_path, plain, name):  # noqa: F811
    settings = {**SAME[name]}
    trainer = make_trainer(
        processor, tmp_path / name, max_steps=3, logging_steps=1, **{**settings, "eval_strategy": "no"}
    )
    trainer.eval_dataset = dataset(6, seed=1)
    trainer.args.eval_strategy = IntervalStrategy(settings.get("eval_strategy", "no"))
    try:
        trainer.train()
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses(trainer) == pytest.approx(plain, rel=1e-5)
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == ([0, 2, 3] if name == "eval_on_start" else [])


DIFFERENT = {
    "bf16": {"bf16": True},
    "data_seed": {"data_seed": 7},
    "clipped": {"max_grad_norm": 1e-3, "learning_rate": 1e-2, "optim": "sgd"},
    "constant": {"lr_scheduler_type": "constant", "learning_rate": 1e-2},
    "min_lr": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-2}},
    "neftune": {"neftune_noise_alpha": 50.0},
    "optimizer": {"optim": "sgd", "optim_args": "momentum=0.5", "learning_rate": 1e-2},
    "sequential": {"train_sampling_strategy": "sequential"},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_these_change_training(processor, tmp_path, plain, name):  # noqa: F811
    trainer = trained(processor, tmp_path / name, **DIFFERENT[name])
    assert np.isfinite(losses(trainer)).all() and losses(trainer) != pytest.approx(plain, rel=1e-6)


def test_order_of_the_list(processor, tmp_path):  # noqa: F811
    """Each epoch in the order of the list, with other draws."""
    trainer = make_trainer(processor, tmp_path, train_sampling_strategy="sequential")
    sampler = trainer._get_train_sampler()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert [index for index, _ in first] == [index for index, _ in second] == list(range(24))
    assert [seed for _, seed in first] != [seed for _, seed in second]


@pytest.mark.slow
def test_memory_that_does_not_suffice_makes_smaller_batches(processor, tmp_path):  # noqa: F811
    trainer = make_trainer(processor, tmp_path, auto_find_batch_size=True, max_steps=2, per_device_train_batch_size=8)
    sizes, compute = [], trainer.compute_loss

    def limited(model, inputs, *args, **kwargs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 4:
            raise RuntimeError("CUDA out of memory.")
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = limited
    trainer.train()
    assert trainer.state.global_step == 2 and sizes[0] == 8 and sizes[-2:] == [4, 4]


def test_best_checkpoint_by_a_term_of_one_of_two_sets(processor, tmp_path):  # noqa: F811
    best = {"metric_for_best_model": "eval_b_loss_ila", "greater_is_better": True}
    steps = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
    }
    trainer = make_trainer(
        processor, tmp_path, max_steps=4, learning_rate=1e-2, **{**steps, **best, "eval_strategy": "no"}
    )
    trainer.eval_dataset = {"a": dataset(7, seed=1), "b": dataset(9, seed=2)}
    trainer.args.eval_strategy, trainer.args.load_best_model_at_end = IntervalStrategy.STEPS, True
    trainer.train()
    found = {e["step"]: e["eval_b_loss_ila"] for e in trainer.state.log_history if "eval_b_loss_ila" in e}
    chosen = max(found, key=lambda step: found[step])
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{chosen}")
    assert trainer.evaluate()["eval_b_loss_ila"] == pytest.approx(found[chosen], rel=1e-5)
    assert len(list(tmp_path.glob("checkpoint-*"))) <= 2


def with_metrics(processor, folder, metrics, **settings):  # noqa: F811
    args = ItemizedCLIPTrainingArguments(output_dir=str(folder), use_cpu=True, per_device_eval_batch_size=4, **settings)
    torch.manual_seed(0)
    return ItemizedCLIPTrainer(
        ItemizedCLIPModel(tiny_config()),
        args,
        processing_class=processor,
        compute_metrics=metrics,
        eval_dataset=dataset(9),
    )


def rows_of(predictions) -> np.ndarray:
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def test_metrics_of_ones_own(processor, tmp_path):  # noqa: F811
    """They get all scores, inputs and losses, at once or batch by batch, also where they were moved meanwhile."""

    def metrics(found):
        assert found.inputs.shape[0] == 9 and found.losses is not None
        return {"rows": float(rows_of(found.predictions).shape[0]), "first": float(rows_of(found.predictions)[0, 0])}

    include = {"include_for_metrics": ["inputs", "loss"]}
    at_once = with_metrics(processor, tmp_path, metrics, **include).evaluate()
    moved = with_metrics(processor, tmp_path, metrics, eval_accumulation_steps=1, **include).evaluate()
    assert at_once["eval_rows"] == moved["eval_rows"] == 9 and at_once["eval_first"] == moved["eval_first"]
    seen = []

    def by_batch(found, compute_result):
        seen.append(rows_of(found.predictions).shape[0])
        return {"rows": float(sum(seen))} if compute_result else {}

    assert with_metrics(processor, tmp_path, by_batch, batch_eval_metrics=True).evaluate()["eval_rows"] == 9
    assert seen == [4, 4, 1]


def test_predictions_of_all_studies(processor, tmp_path):  # noqa: F811
    trainer = with_metrics(processor, tmp_path, None, eval_do_concat_batches=False)
    assert [len(rows_of(batch)) for batch in trainer.predict(dataset(9)).predictions] == [4, 4, 1]
    alone = with_metrics(processor, tmp_path, None, prediction_loss_only=True).predict(dataset(9))
    assert alone.predictions is None and np.isfinite(alone.metrics["test_loss"])


def test_evaluation_in_bf16(processor, tmp_path):  # noqa: F811
    whole = with_metrics(processor, tmp_path, None).evaluate()["eval_loss"]
    half = with_metrics(processor, tmp_path, None, bf16_full_eval=True).evaluate()["eval_loss"]
    assert half == pytest.approx(whole, rel=0.05) and half != whole


def test_data_are_not_skipped_where_one_says_so(processor, tmp_path):  # noqa: F811
    seen = []

    class Seen(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    settings = {
        "save_strategy": "steps",
        "save_steps": 1,
        "per_device_train_batch_size": 4,
        "train_sampling_strategy": "sequential",
    }
    trained(processor, tmp_path, max_steps=1, **settings)
    for ignore, expected in ((False, [4, 5, 6, 7]), (True, [0, 1, 2, 3])):
        seen.clear()
        trainer = make_trainer(
            processor,
            tmp_path,
            rows=Seen(dataset()),
            max_steps=2,
            ignore_data_skip=ignore,
            **{**settings, "save_steps": 9},
        )
        trainer.train(str(tmp_path / "checkpoint-1"))
        assert seen[:4] == expected  # another batch is read ahead


def test_callbacks_are_restored(processor, tmp_path):  # noqa: F811
    from transformers import EarlyStoppingCallback

    patience = []

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            stopping = [c for c in trainer.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
            patience.extend(callback.early_stopping_patience for callback in stopping)

    for steps, own, resume in ((2, 7, None), (3, 1, str(tmp_path / "checkpoint-2"))):
        settings = {"save_strategy": "steps", "save_steps": 1, "metric_for_best_model": "loss"}
        trainer = make_trainer(
            processor, tmp_path, max_steps=steps, restore_callback_states_from_checkpoint=True, **settings
        )
        trainer.eval_dataset, trainer.args.eval_strategy = dataset(4), IntervalStrategy.STEPS
        trainer.add_callback(Look())
        trainer.add_callback(EarlyStoppingCallback(own))
        trainer.train(resume)
    assert patience == [7, 7]
