"""Facts of a training run -> `card.yaml` and `README.md` in its folder."""

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback

from ..version import __version__
from .card import CARD, FACTS, CardFacts, card_text, facts_of_folder


class CardCallback(TrainerCallback):
    """
    Writes the card when training ends. What a person wrote into `card.yaml` stays; only the procedure is replaced.

    Args:
        objective: name and arguments of the objective.
        source: what the weights were at the start: the name on the Hub, or None.
        studies: in the training data.
    """

    def __init__(self, domain: str, objective: tuple[str, dict], source: str | None, studies: int | None):
        self.domain = domain
        self.objective = objective
        self.source = source
        self.studies = studies
        self.seconds = 0.0
        self._start: float | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = time.monotonic()

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self._start is not None:
            self.seconds += time.monotonic() - self._start
        if state.is_world_process_zero:
            write_card(args.output_dir, self.facts(args, state, model))

    def facts(self, args, state, model) -> CardFacts:
        """What the run itself knows; no names of files or studies."""
        name, arguments = self.objective
        training: dict[str, Any] = {
            "objective": f"{name}{''.join(f', {key} {value}' for key, value in arguments.items())}",
            "started from": self.source or "random weights, or weights of a local folder",
            "studies": f"{self.studies:,}" if self.studies is not None else None,
            "items of a study, at most": args.max_items,
            "batch": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "steps": state.global_step,
            "epochs": round(state.epoch, 2) if state.epoch is not None else None,
            "learning rate": f"{args.learning_rate:g}, {args.warmup_steps:g} warm-up steps, {args.lr_scheduler_type.value}",
            "weight decay": args.weight_decay,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
            "seed": args.seed,
            "LoRA": str(args.lora) if args.lora is not None else None,
            "frozen": ", ".join(t for t in ("text", "vision") if getattr(args, f"freeze_{t}")) or None,
            "device": f"{args.world_size} x {device_name(args.device)}",
            "seconds": round(self.seconds),
            "versions": f"itemized-clip-hf {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        }
        repository = args.hub_model_id or Path(args.output_dir).resolve().name
        return CardFacts(
            name=repository,
            domain=self.domain,
            base_models=[self.source] if self.source else [],
            training={key: value for key, value in training.items() if value is not None},
            scoring=model.config.scoring if model is not None else "items",
        )


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def write_card(folder: str | Path, facts: CardFacts) -> None:
    """`card.yaml` and `README.md`; what `card.yaml` said already stays, but for the procedure and the name's absence."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / FACTS).exists():
        kept = CardFacts.read(folder / FACTS)
        kept.training, kept.scoring = facts.training, facts.scoring
        facts = kept
    facts.write(folder / FACTS)
    if (folder / "config.json").exists():
        facts = facts_of_folder(folder)
    (folder / CARD).write_text(card_text(facts), encoding="utf-8")
