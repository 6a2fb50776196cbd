"""Training runs, one YAML file each: domain, changes to architecture and preprocessing, tokenizer, training arguments."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..domains import load_domain
from ..processing.settings_itemized_clip import rename_settings
from ..specs import build, check_keys, conform, describe, did_you_mean, find_written, merge, read_written

_FOLDER = Path(__file__).parent


@dataclass
class Recipe:
    """
    What a training run starts from.

    Args:
        domain: whose facts the run starts from: a name, or a file, looked for beside the recipe first.
        model: changes to the domain's architecture, nested as the arguments of `ItemizedCLIPConfig`.
        image: changes to the domain's image preset.
        tokenizer: `{"vocab_size": n, "context_length": m}` to learn one from the items; a path on the command line wins.
        training: arguments of `ItemizedCLIPTrainingArguments`.
        global_batch_size: studies of one optimiser step over all processes.
        cache_pictures: shortest side in pixels at which decoded pictures are kept in memory; None reads files every time.
        variants: name -> changes, laid out as a recipe; of another recipe, where they name it as `base`.
        note: what a reader should know.
    """

    domain: str
    model: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, int] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    global_batch_size: int | None = None
    cache_pictures: int | None = None
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""

    def variant(self, name: str, thorough: bool = True) -> "Recipe":
        """
        The recipe with the changes of one of its variants.

        Args:
            thorough: check the recipe that the variant starts from, if that is another one; see `load_recipe`.
        """
        if name not in self.variants:
            hint = did_you_mean(name, self.variants)
            raise ValueError(f"the recipe has no variant {name!r}; it has {sorted(self.variants)}.{hint}")
        changes = dict(self.variants[name])
        base = self
        if "base" in changes:
            base = (load_recipe if thorough else read_recipe)(changes.pop("base"))
        return Recipe(**merge_recipes({**vars(base), "variants": {}}, changes))

    def architecture(self) -> dict:
        """Arguments of `ItemizedCLIPConfig`; a text tower of another type takes nothing from the domain's."""
        base = load_domain(self.domain).architecture
        text = self.model.get("text_config", {})
        if text.get("model_type", base["text_config"]["model_type"]) != base["text_config"]["model_type"]:
            base = {**base, "text_config": {}}
        return merge(base, self.model)


def without_foreign_weights(training: dict, changes: dict) -> dict:
    """Training arguments that `changes` start from: another objective does not inherit the weights of the one it replaces."""
    before = training.get("objective", "itemized_clip")
    if changes.get("objective", before) == before:
        return training
    return {name: value for name, value in training.items() if name != "objective_weights"}


def merge_recipes(base: dict, changes: dict) -> dict:
    """`changes` over the fields of a recipe."""
    return merge({**base, "training": without_foreign_weights(base["training"], changes.get("training", {}))}, changes)


def available_recipes() -> list[str]:
    """
    Names of the recipes of the package.

    >>> "brain-mri" in available_recipes()
    True
    """
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str) -> Recipe:
    """
    A recipe of the package by name, or any YAML file; a file may start from another with `base: NAME`.

    >>> recipe = load_recipe("brain-mri")
    >>> recipe.domain, recipe.global_batch_size, recipe.training["learning_rate"]
    ('brain-mri', 256, 0.000175)
    >>> recipe.variant("tiny").global_batch_size
    4

    Raises:
        ValueError: there is none, it is not valid YAML, or it or a variant says what no recipe can (file, key, expected).
    """
    from .schema import check_recipe

    recipe = read_recipe(name_or_path)
    check_recipe(recipe, find_recipe(name_or_path).name)
    return recipe


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe; ValueError where there is none of that name."""
    return find_written("recipe", name_or_path, _FOLDER, available_recipes())


def read_recipe(name_or_path: str) -> Recipe:
    """A recipe as it is written: its own keys are checked, but not what the model, the processor and the Trainer take."""
    return _read_recipe(name_or_path, ())


def _rename_image_settings(content: dict[str, Any], where: str) -> None:
    """Gives image settings that a recipe and its variants hold under a former name the present one."""
    variants = content.get("variants")
    for section in (content, *(variants.values() if isinstance(variants, dict) else ())):
        if isinstance(section, dict) and isinstance(section.get("image"), dict):
            try:
                section["image"] = rename_settings(section["image"])
            except ValueError as error:
                raise ValueError(f"{where}: image: {error}") from None


def _read_recipe(name_or_path: str, above: tuple[str, ...]) -> Recipe:
    path = find_recipe(name_or_path)
    if str(path.resolve()) in above:
        raise ValueError(f"{path.name} starts from itself: `base` names a recipe that names it again.")
    content = read_written(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"{path.name} is no recipe: it holds {describe(content)}, expected keys such as domain and training."
        )
    known = Recipe.__dataclass_fields__
    check_keys(content, [*known, "base"], path.name, "a recipe has")
    base = content.pop("base", None)
    for name in ("model", "image", "training"):
        if name in content:
            conform(content[name], dict[str, Any], f"{path.name}: {name}")
    _rename_image_settings(content, path.name)
    if base is not None:
        conform(base, str, f"{path.name}: base")
        content = merge_recipes({**vars(_read_recipe(base, (*above, str(path.resolve())))), "variants": {}}, content)
    recipe = build(Recipe, content, path.name)
    if recipe.domain.lower().endswith((".yaml", ".yml")):
        beside = path.parent / recipe.domain
        recipe.domain = load_domain(beside if beside.is_file() else recipe.domain).name
    return recipe
