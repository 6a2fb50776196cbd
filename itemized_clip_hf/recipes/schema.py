"""What recipes and their variants may hold."""

from typing import Any

from ..domains import load_domain
from ..domains.schema import check_architecture, check_image_settings
from ..specs import check_keys, check_section, conform, hints_of
from . import Recipe


def check_recipe(recipe: Recipe, where: str) -> None:
    """
    Checks the sections of a recipe and of its variants.

    Raises:
        ValueError: a section, or one of a variant, has keys or values that the run would not take.
    """
    image = load_domain(recipe.domain).image
    check_image_settings({**image, **recipe.image}, f"{where}: image")
    check_architecture(recipe.architecture(), f"{where}: model")
    check_training(recipe.training, f"{where}: training")
    if recipe.tokenizer is not None:
        check_section(recipe.tokenizer, {"vocab_size": int, "context_length": int}, f"{where}: tokenizer")
    numbers = {f"tokenizer: {name}": value for name, value in (recipe.tokenizer or {}).items()}
    numbers |= {name: getattr(recipe, name) for name in ("global_batch_size", "cache_pictures")}
    for name, value in numbers.items():
        if value is not None and not 1 <= value <= 1 << 24:
            raise ValueError(f"{where}: {name} is {value}, expected 1 to {1 << 24}.")
    known = [name for name in recipe.__dataclass_fields__ if name != "variants"]
    for name, changes in recipe.variants.items():
        inside = f"{where}: variant {name}"
        check_keys(changes, [*known, "base"], inside, "a recipe has")
        conform(changes.get("base", ""), str, f"{inside}: base")
        for part in ("model", "image", "training"):
            conform(changes.get(part, {}), dict[str, Any], f"{inside}: {part}")
        if "base" not in changes:  # what starts from another recipe is checked when it is asked for
            check_recipe(recipe.variant(name), inside)


def check_training(training: dict[str, Any], where: str) -> None:
    """Checks names and types of training arguments; raises a ValueError."""
    from ..trainer.training_args import ItemizedCLIPTrainingArguments

    hints = hints_of(ItemizedCLIPTrainingArguments)
    check_section(training, {name: hints[name] for name in ItemizedCLIPTrainingArguments.__dataclass_fields__}, where)
    if training.get("augmentation") is not None:
        from ..trainer.augmentation import AugmentationSettings

        try:
            AugmentationSettings.read(training["augmentation"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
