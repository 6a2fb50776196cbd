"""Facts of a training run, for the card that is written where its model is saved."""

import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..hub.card import CARD, FACTS, CardFacts, facts_of_folder, write_card
from ..provenance import device_name, installed_versions
from .training_args import ItemizedCLIPTrainingArguments

logger = logging.get_logger(__name__)


class CardCallback(TrainerCallback):
    """
    Takes the time, and knows what a card says of a run; `Trainer._save` has it written.

    Args:
        domain: of the model.
        objective: name and arguments of the objective.
        base_model: name on the Hub of the model that training started from.
        studies: in the training data.
    """

    def __init__(self, domain: str, objective: tuple[str, dict[str, Any]], base_model: str | None, studies: int | None):
        self.domain = domain
        self.objective = objective
        self.base_model = base_model
        self.studies = studies
        self.started_from = base_model or "random weights"
        self.license_note = ""
        self._start: float | None = None
        self._resumed_at = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._start = time.monotonic()
        self._resumed_at = state.global_step

    def facts(self, args: ItemizedCLIPTrainingArguments, state: TrainerState, model: PreTrainedModel) -> CardFacts:
        """What the run itself knows; no names of files or studies."""
        name, arguments = self.objective
        seconds = round(time.monotonic() - self._start) if self._start is not None else None
        scheduler = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        since = f" since step {self._resumed_at:,}" if self._resumed_at else ""
        training: dict[str, Any] = {
            "objective": f"{name}{''.join(f', {key} {value}' for key, value in arguments.items())}",
            "started from": self.started_from,
            "studies": f"{self.studies:,}" if self.studies is not None else None,
            "items of a study, at most": args.max_items,
            "batch": f"{args.train_batch_size * args.gradient_accumulation_steps * args.world_size:,}",
            "steps": f"{state.global_step:,}",
            "epochs": round(state.epoch, 2) if state.epoch is not None else None,
            "learning rate": f"{args.learning_rate:g}, {args.warmup_steps:g} warm-up steps, {scheduler}",
            "weight decay": args.weight_decay,
            "Muon": None
            if args.muon_learning_rate is None
            else f"learning rate {args.muon_learning_rate:g}, weight decay {args.muon_weight_decay:g}",
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
            "seed": f"{args.seed:,}",
            "LoRA": str(args.lora) if args.lora is not None else None,
            "frozen": ", ".join(frozen_part(t, getattr(args, f"freeze_{t}")) for t in ("text", "vision")).strip(", ")
            or None,
            "device": f"{args.world_size} x {device_name(args.device)}",
            "seconds": None if seconds is None else f"{seconds:,}{since}",
            "versions": ", ".join(" ".join(map(str, x)) for x in installed_versions(("torch", "transformers")).items()),
        }
        return CardFacts(
            name=args.hub_model_id or Path(str(args.output_dir)).resolve().name,
            domain=self.domain,
            base_models=[self.base_model] if self.base_model else [],
            license_note=self.license_note,
            training={key: value for key, value in training.items() if value is not None},
            scoring=model.config.scoring,
        )

    def write(
        self,
        folder: str | Path,
        args: ItemizedCLIPTrainingArguments,
        state: TrainerState,
        model: PreTrainedModel,
    ) -> None:
        """
        Writes the card of a saved model.

        What a person wrote into `card.yaml` of the run stays; what was said of earlier weights (results, conversion) does not.
        """
        facts = self.facts(args, state, model)
        for place in (folder, str(args.output_dir)):
            if (Path(place) / FACTS).exists():
                known = CardFacts.read(Path(place) / FACTS)
                known.training, known.scoring = facts.training, facts.scoring
                known.measured, known.paper, known.converted = [], [], {}
                known.license_note = known.license_note or facts.license_note
                facts = known
                break
        facts.write(Path(folder) / FACTS)
        if not write_card(folder, facts_of_folder(folder) if (Path(folder) / "config.json").exists() else facts):
            logger.warning(f"{CARD} has been edited and is kept; `itemized-clip card --overwrite` makes it anew.")


def frozen_part(tower: str, mode: bool | str) -> str:
    """A tower and how it is frozen, in words; empty where it is not."""
    return "" if not mode else tower if mode is True else f"{tower} ({mode})"
