"""Adapters and their base model -> an ordinary model folder, with its card."""

import os
from pathlib import Path

from ..bars import without_library_bars
from ..data.studies.training_ids import TrainingIds
from ..domains import save_domain
from ..hub.card import CARD, FACTS, CardFacts, facts_of_folder, is_edited, write_card
from ..specs import read_text
from .adapters import find_base
from .load import load
from .names import is_adapter_folder

MERGED = "The LoRA adapters were added to the weights of their base model (`itemized-clip merge`)."
LICENSE = ("license", "license_name", "license_link", "license_note")


def merge_folder(adapters: str | os.PathLike, output: str | os.PathLike, base: str | None = None) -> int:
    """
    Writes the merged model, its processor, its card and what is known of its training data; returns the number of parameters.

    The card is that of the adapters with the merge in its history. Its figures stay: `evaluate` merges adapters too, they are
    of these very weights. Where the adapters state no license, the base model's holds. A README that somebody has edited goes
    along with a sentence on the merge; an edited one that is in `output` already stays.

    Args:
        adapters: folder that training with LoRA left.
        base: the base model, where it is no longer in the place that the adapters name.

    Raises:
        ValueError: the folder holds no adapters.
    """
    adapters, output = Path(adapters), Path(output)
    if not is_adapter_folder(adapters):
        raise ValueError(f"{adapters} holds no adapters (adapter_config.json).")
    base = base if base is not None else find_base(adapters)
    kept = is_edited(output)
    model, processor = load(adapters, "cpu", base=base)
    with without_library_bars():
        model.save_pretrained(output)
    processor.save_pretrained(output)
    save_domain(model.config.domain, output)
    trained_on = TrainingIds.read(adapters)
    if trained_on is not None:
        trained_on.write(output)
    if (adapters / FACTS).exists() or model.config.domain is not None:
        write_merged_card(adapters, output, Path(base), kept)
    return model.num_parameters()


def write_merged_card(adapters: Path, output: Path, base: Path, keep_readme: bool = False) -> None:
    """
    `card.yaml` and `README.md` of a merged model folder, from those of the adapters and of the base model.

    Args:
        keep_readme: the README in the folder is somebody's work and stays.
    """
    facts = CardFacts.read(adapters / FACTS) if (adapters / FACTS).exists() else facts_of_folder(output)
    if facts.license is None and (base / FACTS).exists():
        stated = CardFacts.read(base / FACTS)
        for name in LICENSE:
            setattr(facts, name, getattr(facts, name) or getattr(stated, name))
    if facts.name == adapters.resolve().name:  # nobody has chosen a name
        facts.name = output.resolve().name
    facts.training["merged"] = MERGED
    facts.write(output / FACTS)
    edited = is_edited(adapters)
    if edited and not keep_readme:
        text = read_text(adapters / CARD)
        (output / CARD).write_text(f"{text.rstrip()}\n\n{MERGED}\n", encoding="utf-8")
    write_card(output, facts_of_folder(output), overwrite=not (edited or keep_readme))
