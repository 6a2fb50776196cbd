"""The library's Trainer with an objective inside the model, its terms in the log, and the papers' schedule."""

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, enable_full_determinism, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from ..data.studies.training_ids import ids_of
from ..domains import load_domain
from ..models.adapters import has_adapters
from .argument_rules import USED_AT_CONSTRUCTION, refuse_arguments
from .cached import KeepPixelsOnHost, cached_encoding
from .card_callback import CardCallback
from .checkpoints import CheckpointingTrainer
from .collator import ItemizedCLIPCollator
from .distributed import SeedByRank, choose_sharded_units, refuse_caching, require_even_batches, whole
from .loss_terms import LossTerms
from .lost_process import limit_waiting, lost_processes_named, process_addresses
from .objectives import Objective, StudyTextObjective, objective_name
from .optimizers import ClampLogitScale, OptimizingTrainer
from .preparation import (
    build_collator,
    build_objective,
    prepare_model,
    refuse_constructor,
    require_evaluable,
    require_publishable,
    require_steps,
    unchanged,
    warn_of_study,
)
from .publishing import PublishingTrainer
from .resident import ResidentPictures
from .sampler import SeededDataset, SeededSampler
from .save_by_time import SaveByTime
from .training_args import ItemizedCLIPTrainingArguments

logger = logging.get_logger(__name__)


class ItemizedCLIPTrainer(OptimizingTrainer, CheckpointingTrainer, PublishingTrainer):
    """
    Args:
        model: [`ItemizedCLIPModel`].
        args: [`ItemizedCLIPTrainingArguments`].
        train_dataset, eval_dataset: map-style; examples as the collator takes them.
        processing_class: [`ItemizedCLIPProcessor`]; builds the collator where none is given.
        objective: an [`Objective`] instead of the one that `args` name.
        model_init: builds the model instead, anew for every `train`, as a search for settings asks for.
        evaluators: called as `evaluator(model, processor)` at every evaluation; each returns named figures, which are logged
            with `eval_` before their names and may choose the best checkpoint (`metric_for_best_model`); see
            `evaluation/evaluators.py`.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model=None,
        args: ItemizedCLIPTrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        objective: Objective | None = None,
        evaluators: Sequence[Callable[..., Mapping[str, float]]] = (),
        model_init: Callable[..., PreTrainedModel] | None = None,
        **kwargs,
    ):
        args = args if args is not None else ItemizedCLIPTrainingArguments(output_dir="itemized-clip-output")
        refuse_arguments(args)
        refuse_constructor(args, model, model_init, train_dataset, kwargs)
        self._first_model = None
        self._figures: dict[str, float] = {}
        self.model_init = model_init  # type: ignore[assignment]
        if model is None and model_init is not None:
            enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
            model = super().call_model_init()
        domain = load_domain(model.config.domain) if model.config.domain else None
        self.card: CardCallback | None = None
        self.resident: ResidentPictures | None = None
        if data_collator is None:
            data_collator = build_collator(args, processing_class, domain)
        self.objective: Objective = objective if objective is not None else build_objective(args, domain)
        require_publishable(args, model)
        if isinstance(self.objective, StudyTextObjective) and isinstance(data_collator, ItemizedCLIPCollator):
            data_collator = replace(data_collator, join_items=self.objective.join_items)
        prepare_model(model, args, self.objective, processing_class)
        self.trained_on = ids_of(train_dataset), str(model.config.name_or_path or "")
        if train_dataset is not None:
            train_dataset = self._seeded(train_dataset, data_collator, args)
        self._terms, self._evaluation_terms = LossTerms(), LossTerms()
        self.evaluators = list(evaluators)
        require_evaluable(self.evaluators, args, processing_class)
        strategy = args.eval_strategy
        if self.evaluators and eval_dataset is None:
            args.eval_strategy = IntervalStrategy.NO  # the library would ask for a data set
        self._first_model = model if model_init is not None else None
        super().__init__(
            model=None if model_init is not None else model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            **kwargs,
        )
        args.eval_strategy = strategy
        if args.cached_micro_batch_size is not None:
            refuse_caching(self)
        if has_adapters(model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("adapters are not saved from sharded models: train them without FSDP and DeepSpeed.")
        self._add_callbacks()
        # Evaluation asks the model for a loss although there are no labels.
        self.can_return_loss = True
        self._processes: list[tuple[str, int]] = []
        require_even_batches(self.args)
        limit_waiting(self.args.ddp_timeout)
        if self.is_fsdp_enabled:
            choose_sharded_units(self.accelerator.state.fsdp_plugin, self.model)

    def _seeded(self, train_dataset, collator, args):
        """The training data with a seed a visit."""
        if args.resident_pictures and isinstance(collator, ItemizedCLIPCollator):
            self.resident = ResidentPictures(train_dataset, collator, args.device)
            return self.resident
        prepare = getattr(collator, "prepare", unchanged)
        return SeededDataset(train_dataset, prepare, getattr(collator, "report", warn_of_study))

    def _add_callbacks(self) -> None:
        self.add_callback(ClampLogitScale())
        self.add_callback(SeedByRank())
        save_minutes = cast(ItemizedCLIPTrainingArguments, self.args).save_minutes
        if save_minutes is not None:
            self.add_callback(SaveByTime(save_minutes))
        config = cast(PreTrainedModel, self.model).config
        if config.domain:
            values = vars(self.objective).items()
            settings = {name: value for name, value in values if isinstance(value, (int, float, str))}
            source = str(config.name_or_path or "")
            on_hub = source if source.count("/") == 1 and not Path(source).exists() else None
            studies = len(cast(Sized, self.train_dataset)) if self.train_dataset is not None else None
            self.card = CardCallback(config.domain, (objective_name(self.objective), settings), on_hub, studies)
            self.add_callback(self.card)

    def call_model_init(self, trial=None):
        """A fresh model with the objective in it; the first one is built before the library asks for it."""
        model, self._first_model = self._first_model, None
        if model is None:
            model = super().call_model_init(trial)
            prepare_model(model, self.args, self.objective, self.processing_class)
        return model

    def _hp_search_setup(self, trial) -> None:
        before = {name: getattr(self.args, name) for name in USED_AT_CONSTRUCTION}
        super()._hp_search_setup(trial)
        changed = [name for name, value in before.items() if getattr(self.args, name) != value]
        if changed:
            raise ValueError(
                f"a search cannot change {changed}: model, objective and data are built with them before it begins. Build a "
                "Trainer for each of their values."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        As the library's.

        Raises:
            ValueError: where there are too few studies for one step, or a checkpoint does not hold all that it takes to go on.
        """
        with lost_processes_named(self.args.ddp_timeout, self._processes):
            self._processes[:] = process_addresses()
            checkpoint = self.find_checkpoint(resume_from_checkpoint)
            self._terms.clear()
            return super().train(checkpoint, *args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """The loss and its terms of the evaluation data, each set's under its name, and the figures of the evaluators."""
        with lost_processes_named(self.args.ddp_timeout, self._processes):
            self._figures = self._run_evaluators(metric_key_prefix)
            chosen = self.eval_dataset if eval_dataset is None else eval_dataset
            if chosen is None:
                figures, self._figures = self._figures, {}
                if figures:
                    self.log(dict(figures))
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
                return figures
            if not isinstance(chosen, dict):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            metrics: dict[str, float] = {}
            for name, one in chosen.items():
                own: Any = name if eval_dataset is None else one
                metrics |= super().evaluate(own, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix: str = "test"):
        with lost_processes_named(self.args.ddp_timeout, self._processes):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def _run_evaluators(self, prefix: str) -> dict[str, float]:
        """Every process computes all of them, so that all know the best checkpoint."""
        if not self.evaluators:
            return {}
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        figures: dict[str, float] = {}
        with torch.random.fork_rng(devices):
            model.eval()
            for evaluator in self.evaluators:
                figures |= {f"{prefix}_{name}": float(v) for name, v in evaluator(model, self.processing_class).items()}
            model.train(training)
        return figures

    def _get_train_sampler(self, train_dataset=None):
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        shuffle = self.args.train_sampling_strategy == "random"
        return SeededSampler(len(train_dataset if train_dataset is not None else self.train_dataset), seed, shuffle)

    def get_train_dataloader(self):
        """With cached features, `pixel_values` are a `HostTensor`: a large batch may not fit on the accelerator."""
        collator = self.data_collator
        if self.resident is not None:
            self.data_collator = self.resident.collate
        if self.args.cached_micro_batch_size is not None:
            self.data_collator = KeepPixelsOnHost(self.data_collator)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.data_collator = collator
        require_steps(self.args, len(self.train_dataset), len(loader), self._train_batch_size)
        return loader

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if self.resident is not None and "picture" in inputs:
            inputs["pixel_values"] = self.resident.pixels(inputs.pop("picture"))
        return inputs

    @contextmanager
    def _whole_dataset(self):
        """The last incomplete batch too."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_eval_dataloader(self, eval_dataset=None):
        """All studies. The library keeps the loader of persistent workers, and would give it for any other data too."""
        kept: dict = getattr(self, "_eval_dataloaders", {})
        passed = eval_dataset is not None and not isinstance(eval_dataset, str)
        own = kept.pop("eval", None) if passed else None
        with self._whole_dataset():
            loader = super().get_eval_dataloader(eval_dataset)
        if passed:
            getattr(self, "_eval_dataloaders", {}).pop("eval", None)
            if own is not None:
                kept["eval"] = own
        return loader

    def get_test_dataloader(self, test_dataset):
        with self._whole_dataset():
            return super().get_test_dataloader(test_dataset)

    def _add_up(self, sums: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(sums, "sum")

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ):
        """
        Negatives of an evaluation are always the same, and training's random numbers are left where they were. Terms of the
        loss, means over the studies, and the evaluators' figures are metrics of this evaluation.
        """
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        self._evaluation_terms.clear()
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        output.metrics.update(self._evaluation_terms.take(f"{metric_key_prefix}_", self._add_up))
        output.metrics.update(self._figures)
        self._figures = {}
        return output

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        micro_batch_size = self.args.cached_micro_batch_size if model.training else None
        with nullcontext() if micro_batch_size is None else cached_encoding(self.model, micro_batch_size):
            outputs = model(**inputs, return_loss=True, return_logits=return_outputs)
        if model.training:  # the library's mean is one over steps
            self._terms.add(outputs.loss_terms)
        else:
            self._evaluation_terms.add(outputs.loss_terms, len(inputs["input_ids"]))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds the mean of every loss term since the last entry, and the scale and bias of the logits."""
        if "loss" in logs:
            logs.update(self._terms.take("", self._add_up))
            model = self.accelerator.unwrap_model(self.model)
            logs["logit_scale"] = round(float(whole(model.logit_scale.detach()).exp()), 4)
            logs["logit_bias"] = round(float(whole(model.logit_bias.detach())), 4)
            unknown = [name for name, value in logs.items() if name.startswith("loss") and not math.isfinite(value)]
            if unknown and not self.args.fp16:  # there, steps with too large gradients are left out
                logger.warning(f"step {self.state.global_step}: {', '.join(unknown)} is not finite")
        super().log(logs, *args, **kwargs)
