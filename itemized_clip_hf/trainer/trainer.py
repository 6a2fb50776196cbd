"""The library's Trainer with an objective inside the model, its terms in the log, and the papers' schedule."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy, TrainOutput
from transformers.utils import logging

from ..data.studies.training_ids import ids_of
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from .argument_rules import refuse_arguments
from .cached import KeepPixelsOnHost, cached_encoding
from .checkpoints import CheckpointingTrainer
from .collator import ItemizedCLIPCollator
from .distributed import DistributedTrainer, SeedByRank, full_tensor
from .evaluation import EvaluatingTrainer, Evaluator
from .loss_terms import LossTerms
from .objectives import Objective
from .optimizers import ClampLogitScale, OptimizingTrainer
from .preparation import (
    prepare_parts,
    refuse_constructor,
    require_evaluable,
    require_steps,
    unchanged,
    warn_of_study,
)
from .publishing import PublishingTrainer
from .resident import ResidentPictures
from .sampler import SeededDataset
from .save_by_time import SaveByTime
from .search import SearchingTrainer
from .temporarily import temporarily
from .training_args import ItemizedCLIPTrainingArguments

logger = logging.get_logger(__name__)


class ItemizedCLIPTrainer(
    DistributedTrainer, EvaluatingTrainer, SearchingTrainer, OptimizingTrainer, CheckpointingTrainer, PublishingTrainer
):
    """
    The library's Trainer for [`ItemizedCLIPModel`].

    Args:
        model: [`ItemizedCLIPModel`].
        args: [`ItemizedCLIPTrainingArguments`].
        data_collator: an [`ItemizedCLIPCollator`] of one's own.
        train_dataset, eval_dataset: map-style; examples as the collator takes them.
        processing_class: [`ItemizedCLIPProcessor`]; builds the collator where none is given.
        objective: an [`Objective`] instead of the one that `args` name.
        evaluators: called as `evaluator(model, processor)` at every evaluation; each returns named metrics, which are logged
            with `eval_` before their names and may choose the best checkpoint (`metric_for_best_model`); see
            `evaluation/evaluators.py`.
        model_init: builds the model instead, anew for every `train`, as a search for settings asks for.
        kwargs: the library's other arguments.

    Each part of it is a class in the file of its subject: `distributed`, `evaluation`, `search`, `optimizers`, `checkpoints`,
    `publishing`. This one holds the loss, the training data and the log.
    """

    loss_is_scaled_for_ga = False
    resident: ResidentPictures | None = None

    def __init__(
        self,
        model: ItemizedCLIPModel | None = None,
        args: ItemizedCLIPTrainingArguments | None = None,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ItemizedCLIPProcessor | None = None,
        objective: Objective | None = None,
        evaluators: Sequence[Evaluator] = (),
        model_init: Callable[..., PreTrainedModel] | None = None,
        **kwargs: Any,
    ):
        args = args if args is not None else ItemizedCLIPTrainingArguments(output_dir="itemized-clip-output")
        refuse_arguments(args)
        refuse_constructor(args, model, model_init, train_dataset, kwargs)
        first_model = model if model_init is None else self._build_first_model(args, model_init)
        assert first_model is not None  # refuse_constructor
        parts = prepare_parts(args, first_model, objective, data_collator, processing_class)
        require_evaluable(evaluators, args, processing_class)

        self.objective, self.evaluators = parts.objective, list(evaluators)
        self.trained_on = ids_of(train_dataset), str(first_model.config.name_or_path or "")
        self._terms, self._evaluation_terms = LossTerms(), LossTerms()
        self._evaluator_metrics, self._process_addresses = {}, []
        if train_dataset is not None:
            train_dataset = self._seeded(train_dataset, parts.collator, args)

        # With evaluators alone there is nothing to evaluate in the library's eyes, which would ask for a data set.
        only_evaluators = bool(self.evaluators) and eval_dataset is None
        with temporarily(args, eval_strategy=IntervalStrategy.NO) if only_evaluators else nullcontext():
            super().__init__(
                model=model,
                args=args,
                data_collator=parts.collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                model_init=model_init,
                **kwargs,
            )
        self._prepare_processes(first_model)
        self._add_callbacks()
        self.can_return_loss = True  # evaluation asks the model for a loss although there are no labels

    def _seeded(self, train_dataset: Any, collator: Any, args: ItemizedCLIPTrainingArguments) -> Any:
        """The training data with one seed per visit of a study."""
        if args.resident_pictures and isinstance(collator, ItemizedCLIPCollator):
            self.resident = ResidentPictures(train_dataset, collator, args.device)
            return self.resident
        prepare = getattr(collator, "prepare", unchanged)
        return SeededDataset(train_dataset, prepare, getattr(collator, "report", warn_of_study))

    def _add_callbacks(self) -> None:
        self.add_callback(ClampLogitScale())
        self.add_callback(SeedByRank())
        if self.args.save_minutes is not None:
            self.add_callback(SaveByTime(self.args.save_minutes))
        self._add_card()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `DistributedTrainer`'s; the means of the loss terms start anew."""
        self._terms.clear()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """With cached features, `pixel_values` are a `HostTensor`: a large batch may not fit on the accelerator."""
        collator: Any = self.data_collator if self.resident is None else self.resident.collate
        if self.args.cached_micro_batch_size is not None:
            collator = KeepPixelsOnHost(collator)
        with temporarily(self, data_collator=collator):
            loader = super().get_train_dataloader()
        require_steps(self.args, len(self.train_dataset), len(loader), self._train_batch_size)  # type: ignore[arg-type]  # sized: refuse_constructor
        return loader

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if self.resident is not None and "picture" in inputs:
            inputs["pixel_values"] = self.resident.pixels(inputs.pop("picture"))
        return inputs

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective's loss of a batch; its terms are kept for the log."""
        micro_batch_size = self.args.cached_micro_batch_size if model.training else None
        with nullcontext() if micro_batch_size is None else cached_encoding(self.model, micro_batch_size):
            outputs = model(**inputs, return_loss=True, return_logits=return_outputs)
        if model.training:  # the library's mean is one over steps
            self._terms.add(outputs.loss_terms)
        else:
            self._evaluation_terms.add(outputs.loss_terms, len(inputs["input_ids"]))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of every loss term since the last entry, and the scale and bias of the logits."""
        if "loss" in logs:
            logs.update(self._terms.take("", self._sum_over_processes))
            model: Any = self.accelerator.unwrap_model(self.model)
            logs["logit_scale"] = round(float(full_tensor(model.logit_scale.detach()).exp()), 4)
            logs["logit_bias"] = round(float(full_tensor(model.logit_bias.detach())), 4)
            not_finite = [name for name, value in logs.items() if name.startswith("loss") and not math.isfinite(value)]
            if not_finite and not self.args.fp16:  # there, steps with too large gradients are left out
                logger.warning(f"step {self.state.global_step}: {', '.join(not_finite)} is not finite")
        super().log(logs, *args, **kwargs)
