"""The library's Trainer with an objective inside the model, its terms in the log, and the papers' schedule."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy, IntervalStrategy
from transformers.utils import logging

from ..domains import load_domain
from ..hub.adapters import add_lora, has_adapters, load_adapter_weights, save_adapters
from ..hub.card_callback import CardCallback
from ..hub.push import licensed, push_folder
from .cached import KeepPixelsOnHost, cached_encoding
from .collator import ItemizedCLIPCollator
from .gather import rank, world_size
from .lost_process import limit_waiting, lost_processes_named, process_addresses
from .muon import MuonWithAdamW, linear_weights
from .objectives import Objective, StudyTextObjective, load_objective, objective_name
from .resident import ResidentPictures
from .sampler import SeededDataset, SeededSampler
from .save_by_time import SaveByTime
from .training_args import ItemizedCLIPTrainingArguments

logger = logging.get_logger(__name__)

MAX_LOGIT_SCALE = math.log(100)


def freeze_tower(tower: nn.Module, mode: bool | str) -> None:
    """
    Args:
        tower: text or vision tower.
        mode: False, True, or `"except_layernorm"`, which keeps the parameters of LayerNorms trainable (chest CT's text).
    """
    if not mode:
        return
    for module in tower.modules():
        trainable = mode == "except_layernorm" and isinstance(module, nn.LayerNorm)
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = trainable


class ClampLogitScale(TrainerCallback):
    """Keeps the logit scale in [0, ln 100] after every optimiser step."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            scale = model.logit_scale
            (scale.to_local() if isinstance(scale, DTensor) else scale).clamp_(0, MAX_LOGIT_SCALE)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter, put together from its shards where it has some: then all processes have to ask."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


class SeedByRank(TrainerCallback):
    """Negatives, token masks and dropped paths differ between ranks: seed + rank."""

    def on_train_begin(self, args, state, control, **kwargs):
        if world_size() > 1:
            torch.manual_seed(args.seed + rank())


def refuse_caching(trainer: Trainer) -> None:
    """Raises where parameters are not whole in every process, or are not the model's own, while it runs backward."""
    conflicts = {
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "torch.compile": trainer.args.torch_compile,
        "several GPUs in one process": trainer.args.n_gpu > 1,
    }
    for name in [name for name, found in conflicts.items() if found]:
        raise ValueError(
            f"cached_micro_batch_size does not work with {name}: use one process per GPU without sharding (torchrun), or "
            "gradient checkpointing instead of cached features."
        )


def require_even_batches(args: TrainingArguments) -> None:
    """Raises where a process could come to the end of an epoch earlier than others, which would wait for its texts."""
    if args.world_size > 1 and not args.accelerator_config.even_batches:
        raise ValueError(
            "accelerator_config has even_batches: false, which gives some processes fewer batches than others; the loss "
            "needs all processes in every step. Leave it on: the last batches are then filled up from the start of the epoch. "
            "dataloader_drop_last leaves them out instead."
        )


def choose_sharded_units(plugin, model) -> None:
    """
    FSDP gathers a unit's parameters when its `forward` is called. Objectives call other methods of the pooler: its parameters
    stay with those of the whole model, which are there during the whole loss. And accelerate makes the token embedding a unit
    of its own, which then cannot be part of a larger one (BERT's embeddings).
    """
    words = model.get_input_embeddings()
    kept = {type(module).__name__ for module in model.modules() if words in list(module.modules())[1:]}
    kept.add(type(model.item_pooler).__name__)
    names = plugin.transformer_cls_names_to_wrap or model._no_split_modules
    plugin.transformer_cls_names_to_wrap = [name for name in names if name not in kept]


@contextmanager
def own_class(model):
    """Sharding puts a class of torch's in front of the model's; its code would be saved in place of the model's."""
    shown = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = next(cls for cls in shown.__mro__ if not issubclass(cls, FSDPModule))
    try:
        yield
    finally:
        model.__class__ = shown


class ItemizedCLIPTrainer(Trainer):
    """
    Args:
        model: [`ItemizedCLIPModel`].
        args: [`ItemizedCLIPTrainingArguments`].
        train_dataset, eval_dataset: map-style; examples as the collator takes them.
        processing_class: [`ItemizedCLIPProcessor`]; builds the collator where none is given.
        objective: an [`Objective`] instead of the one that `args` name.
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
        **kwargs,
    ):
        args = args if args is not None else ItemizedCLIPTrainingArguments(output_dir="itemized-clip-output")
        domain = load_domain(model.config.domain) if model.config.domain else None
        if hasattr(processing_class, "preprocessing"):
            processing_class.check_model(model.config)
            model.config.preprocessing = processing_class.preprocessing()
        self.card: CardCallback | None = None
        self.resident: ResidentPictures | None = None
        if data_collator is None:
            if processing_class is None:
                raise ValueError("pass the processor as processing_class, or a data_collator.")
            data_collator = ItemizedCLIPCollator(
                processing_class,
                max_items=args.max_items,
                max_scans=args.max_scans,
                scan_fill=args.scan_fill,
                diverse_sampling=cast(dict | None, args.diverse_sampling),
                is_normal=domain.is_normal if domain else None,
                quarantine=Path(cast(str, args.output_dir)) / "quarantine.csv",
            )
        if objective is None:
            weights = dict(cast(dict | None, args.objective_weights) or {})
            if domain:
                weights = {**domain.weights(args.objective), **weights}
            objective = load_objective(args.objective, **weights)
        self.objective: Objective = objective
        if args.push_to_hub and (args.lora is not None or has_adapters(model)):
            raise ValueError(
                "push_to_hub does not take adapters: train, merge them (itemized-clip merge), and push the result."
            )
        if args.push_to_hub and not model.config.domain:
            raise ValueError("push_to_hub needs a model with a domain (config.domain): its card says what goes in.")
        if args.push_to_hub and not licensed(cast(str, args.output_dir), args.hub_license):
            raise ValueError(
                "push_to_hub needs the licence of the weights: pass hub_license, as the Hub calls it (e.g. cc-by-nc-4.0), or "
                "state it in card.yaml in the output folder."
            )
        if isinstance(objective, StudyTextObjective) and isinstance(data_collator, ItemizedCLIPCollator):
            data_collator = replace(data_collator, join_items=objective.join_items)
        if args.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(args.seed)  # the adapters
                add_lora(model, args.lora)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)  # the objective's own parameters
            objective.attach(model)
        freeze_tower(model.text_model, args.freeze_text)
        freeze_tower(model.vision_model, args.freeze_vision)
        if train_dataset is not None:
            prepare = getattr(data_collator, "prepare", lambda example: example)
            report = getattr(
                data_collator, "report", lambda study, error: logger.warning(f"{study} is left out: {error}")
            )
            if args.resident_pictures and isinstance(data_collator, ItemizedCLIPCollator):
                self.resident = ResidentPictures(train_dataset, data_collator, args.device)
                train_dataset = self.resident
            else:
                train_dataset = SeededDataset(train_dataset, prepare, report)
        self._terms: dict[str, list] = {}
        self.evaluators = list(evaluators)
        if self.evaluators and processing_class is None:
            raise ValueError("evaluators are called with the processor: pass it as processing_class.")
        if self.evaluators and (args.fsdp or args.deepspeed):
            raise ValueError(
                "evaluators need the whole model: leave out FSDP and DeepSpeed, or evaluate afterwards (evaluate)."
            )
        strategy = args.eval_strategy
        if self.evaluators and eval_dataset is None:
            args.eval_strategy = IntervalStrategy.NO  # the library would ask for a data set
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        args.eval_strategy = strategy
        if args.cached_micro_batch_size is not None:
            refuse_caching(self)
        if has_adapters(model) and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("adapters are not saved from sharded models: train them without FSDP and DeepSpeed.")
        self.add_callback(ClampLogitScale())
        self.add_callback(SeedByRank())
        if args.save_minutes is not None:
            self.add_callback(SaveByTime(args.save_minutes))
        if model.config.domain:
            settings = {name: value for name, value in vars(objective).items() if isinstance(value, (int, float, str))}
            source = str(model.config.name_or_path or "")
            on_hub = source if source.count("/") == 1 and not Path(source).exists() else None
            studies = len(train_dataset) if hasattr(train_dataset, "__len__") else None
            self.card = CardCallback(model.config.domain, (objective_name(objective), settings), on_hub, studies)
            self.add_callback(self.card)
        # Evaluation asks the model for a loss although there are no labels.
        self.can_return_loss = True
        self._processes: list[tuple[str, int]] = []
        require_even_batches(self.args)
        limit_waiting(self.args.ddp_timeout)
        if self.is_fsdp_enabled:
            choose_sharded_units(self.accelerator.state.fsdp_plugin, self.model)

    def train(self, *args, **kwargs):
        with lost_processes_named(self.args.ddp_timeout, self._processes):
            self._processes[:] = process_addresses()
            return super().train(*args, **kwargs)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """The loss of the evaluation data, if there are any, and the figures of the evaluators."""
        with lost_processes_named(self.args.ddp_timeout, self._processes):
            whole = metric_key_prefix == "eval"  # not one of several data sets, which are evaluated one by one
            figures = self._run_evaluators(metric_key_prefix) if whole else {}
            if figures:
                self.log(dict(figures))
            if eval_dataset is None and self.eval_dataset is None:
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
                return figures
            with self._added_to_metrics(figures):
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    @contextmanager
    def _added_to_metrics(self, figures: dict[str, float]):
        """Callbacks, and who asked for the evaluation, get these figures with the library's."""
        on_evaluate = self.callback_handler.on_evaluate

        def with_figures(args, state, control, metrics):
            metrics.update(figures)
            return on_evaluate(args, state, control, metrics)

        self.callback_handler.on_evaluate = with_figures  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del self.callback_handler.on_evaluate

    def _run_evaluators(self, prefix: str) -> dict[str, float]:
        """Every process computes all of them, so that all know the best checkpoint."""
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
        return SeededSampler(len(train_dataset if train_dataset is not None else self.train_dataset), self.args.seed)

    def get_decay_parameter_names(self, model) -> list[str]:
        """
        Matrices and embeddings only: no decay on norms, biases, scale and the like.

        The class token of the volume towers is decayed, that of the picture towers is not, as in the released code.
        """
        volumes = self.accelerator.unwrap_model(model).config.vision_config.position_embedding_type == "sincos"
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 or volumes and name.endswith("class_embedding")
        ]

    def get_train_dataloader(self):
        """With cached features, `pixel_values` are a `HostTensor`: a large batch may not fit on the accelerator."""
        collator = self.data_collator
        if self.resident is not None:
            self.data_collator = self.resident.collate
        if self.args.cached_micro_batch_size is not None:
            self.data_collator = KeepPixelsOnHost(self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if self.resident is not None and "picture" in inputs:
            inputs["pixel_values"] = self.resident.pixels(inputs.pop("picture"))
        return inputs

    def get_eval_dataloader(self, eval_dataset=None):
        """All studies, the last incomplete batch too."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def evaluation_loop(self, *args, **kwargs):
        """Negatives of an evaluation are always the same, and training's random numbers are left where they were."""
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.args.seed)
            return super().evaluation_loop(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs):
        """Parameters of the objective leave the library's groups for those that the objective asks for."""
        created = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        module = self.accelerator.unwrap_model(self.model).objective_module
        own: set[int] = set()
        if created and module is not None:
            for chosen in self.objective.parameter_groups(module):
                moved = {id(parameter) for parameter in chosen["params"]}
                own |= moved
                for group in optimizer.param_groups:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
                optimizer.add_param_group(chosen)
        if created and self.args.muon_learning_rate is not None:
            matrices = [weight for weight in linear_weights(self.model) if id(weight) not in own]
            optimizer = self.optimizer = MuonWithAdamW(
                optimizer, matrices, self.args.muon_learning_rate, self.args.muon_weight_decay
            )
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """
        Cosine to zero after a linear warm-up that starts at lr / warmup instead of 0; other types are the library's.

        The warm-up of a group of parameters is its `warmup_steps` where it has some.
        """
        if self.args.lr_scheduler_type != "cosine" or self.args.lr_scheduler_kwargs:
            return super().create_scheduler(num_training_steps, optimizer)
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)

            def factor(step: int, warmup: int) -> float:
                if step < warmup:
                    return (step + 1) / warmup
                return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, num_training_steps - warmup))))

            chosen = cast(torch.optim.Optimizer, optimizer if optimizer is not None else self.optimizer)
            factors: list[Any] = [
                partial(factor, warmup=group.get("warmup_steps", warmup)) for group in chosen.param_groups
            ]
            self.lr_scheduler = LambdaLR(chosen, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Of a model with adapters these and what else was trained; its base stays where it is."""
        folder = Path(cast(str, output_dir if output_dir is not None else self.args.output_dir))
        if not has_adapters(self.model):
            with own_class(self.model):
                super()._save(output_dir, state_dict)
        elif self.args.should_save:
            save_adapters(self.model, folder, state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            torch.save(self.args, folder / TRAINING_ARGS_NAME)
        if self.card is not None and self.args.should_save:
            self.card.write(folder, self.args, self.state, self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if not has_adapters(self.model):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_adapter_weights(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if not has_adapters(self.model):
            return super()._load_best_model()
        load_adapter_weights(self.model, cast(str, self.state.best_model_checkpoint))

    def create_model_card(self, *args, **kwargs) -> None:
        """Of the output folder, where a model has been saved there; saving writes it too."""
        if self.card is not None and self.is_world_process_zero():
            self.card.write(cast(str, self.args.output_dir), self.args, self.state, self.model)

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **kwargs
    ):
        """Saves and uploads what `hub.push.push_folder` publishes, after its checks; waits for the upload."""
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        return self._push(cast(str, self.args.output_dir), commit_message, token, revision, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        message = f"Training in progress, step {self.state.global_step}"
        try:
            self._push(checkpoint_folder, message, None, None, None, test=False)  # the model of the end is tested
        except Exception as error:  # a hub that cannot be reached now is no reason to lose the run
            logger.warning(f"the checkpoint of step {self.state.global_step} was not uploaded: {error}")

    def _push(self, folder: str, message: str, token, revision, private, test: bool = True) -> dict:
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return push_folder(
            folder,
            cast(str, self.hub_model_id),
            bool(self.args.hub_private_repo if private is None else private),
            license=cast(ItemizedCLIPTrainingArguments, self.args).hub_license,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            message=message,
            test=test,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        micro_batch_size = self.args.cached_micro_batch_size if model.training else None
        with nullcontext() if micro_batch_size is None else cached_encoding(self.model, micro_batch_size):
            outputs = model(**inputs, return_loss=True, return_logits=return_outputs)
        phase = "" if model.training else "eval_"
        for name, term in (outputs.loss_terms or {}).items():
            total = self._terms.setdefault(f"{phase}loss_{name}", [0.0, 0])
            total[0] = total[0] + term.detach().float()
            total[1] += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds the mean of every loss term since the last entry, and the scale and bias of the logits."""
        phase = "eval_" if any(name.startswith("eval_") for name in logs) else ""
        if "loss" in logs or phase:
            for name in [name for name in self._terms if name.startswith("eval_") == bool(phase)]:
                total, count = self._terms.pop(name)
                logs[name] = round(float(total) / count, 6)
        if "loss" in logs:
            model = self.accelerator.unwrap_model(self.model)
            logs["logit_scale"] = round(float(whole(model.logit_scale.detach()).exp()), 4)
            logs["logit_bias"] = round(float(whole(model.logit_bias.detach())), 4)
        super().log(logs, *args, **kwargs)
