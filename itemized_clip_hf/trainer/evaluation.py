"""Evaluations during training: all studies, the same negatives every time, terms of the loss and evaluators of one's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from .base import TrainerBase
from .loss_terms import LossTerms
from .temporarily import temporarily

Evaluator = Callable[..., Mapping[str, float]]


class CompleteEvaluation(TrainerBase):
    """Evaluates on all studies of a data set, whatever training does with the last batch."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """All studies. The library keeps the loader of persistent workers, and would give it for any other data too."""
        loaders: dict[str, DataLoader[Any]] = getattr(self, "_eval_dataloaders", {})
        is_passed = eval_dataset is not None and not isinstance(eval_dataset, str)
        loader_of_own_data = loaders.pop("eval", None) if is_passed else None
        with self._incomplete_batches_kept():
            loader = super().get_eval_dataloader(eval_dataset)
        if is_passed:
            getattr(self, "_eval_dataloaders", {}).pop("eval", None)
            if loader_of_own_data is not None:
                loaders["eval"] = loader_of_own_data
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """All studies."""
        with self._incomplete_batches_kept():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _incomplete_batches_kept(self) -> Iterator[None]:
        with temporarily(self.args, dataloader_drop_last=False):
            yield


class EvaluatingTrainer(CompleteEvaluation):
    """Evaluates on whole data sets and leaves training's random numbers alone."""

    evaluators: Sequence[Evaluator]
    _evaluation_terms: LossTerms
    _evaluator_metrics: dict[str, float]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The loss and its terms of the evaluation data, each set's under its name, and the metrics of the evaluators."""
        self._evaluator_metrics = self._run_evaluators(metric_key_prefix)
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if datasets is None:
            metrics, self._evaluator_metrics = self._evaluator_metrics, {}
            if metrics:
                self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics
        if not isinstance(datasets, dict):
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        metrics = {}
        for name, dataset in datasets.items():
            named_or_passed: Any = name if eval_dataset is None else dataset
            metrics |= super().evaluate(named_or_passed, ignore_keys, f"{metric_key_prefix}_{name}")
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        The library's loop, which leaves training's random numbers where they were.

        Negatives of an evaluation are always the same. Terms of the loss, means over the studies, and the metrics of the
        evaluators are metrics of this evaluation.
        """
        self._evaluation_terms.clear()
        with torch.random.fork_rng(current_devices()):
            torch.manual_seed(self.args.seed)
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        metrics = output.metrics if output.metrics is not None else {}
        metrics.update(self._evaluation_terms.take(f"{metric_key_prefix}_", self._sum_over_processes))
        metrics.update(self._evaluator_metrics)
        self._evaluator_metrics = {}
        return output._replace(metrics=metrics)

    def _run_evaluators(self, prefix: str) -> dict[str, float]:
        """Every process computes all of them, so that all know the best checkpoint."""
        if not self.evaluators:
            return {}
        model: Any = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        metrics: dict[str, float] = {}
        with torch.random.fork_rng(current_devices()):
            model.eval()
            for evaluator in self.evaluators:
                named = evaluator(model, self.processing_class)
                metrics |= {f"{prefix}_{name}": float(value) for name, value in named.items()}
            model.train(was_training)
        return metrics

    def _sum_over_processes(self, sums: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.accelerator.reduce(sums, "sum")
        return total


def current_devices() -> list[int]:
    """The accelerators whose random numbers an evaluation has to leave alone."""
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []
