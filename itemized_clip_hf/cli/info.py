"""What is installed and known, or what a model folder holds."""

import json
from typing import Any

import click

from itemized_clip_cli import json_option


@click.command()
@click.option(
    "-m", "--model", metavar="MODEL", help="Describe this model (folder, ORG/NAME or ORG/NAME@REVISION) instead."
)
@json_option
def command(model: str | None, as_json: bool) -> None:
    """Versions, domains, objectives, recipes and protocols; or the facts of a model folder."""
    facts = model_facts(model) if model else package_facts()
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        click.echo(f"{name:<22}{', '.join(map(str, value)) if isinstance(value, list) else value}")


def package_facts() -> dict:
    """Versions, devices, and names of all that can be chosen."""
    import torch

    from itemized_clip_hf.domains import available_domains
    from itemized_clip_hf.evaluation.protocols import available_protocols
    from itemized_clip_hf.evaluation.tasks import available_tasks
    from itemized_clip_hf.provenance import installed_versions
    from itemized_clip_hf.recipes import available_recipes
    from itemized_clip_hf.trainer.objectives import available_objectives

    packages = ("python", "torch", "transformers", "accelerate", "nibabel", "datasets", "scikit-learn", "matplotlib")
    facts: dict[str, Any] = {name: number or "not installed" for name, number in installed_versions(packages).items()}
    facts["devices"] = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    facts["domains"] = available_domains()
    facts["objectives"] = available_objectives()
    facts["recipes"] = available_recipes()
    facts["protocols"] = [*available_protocols(), *available_tasks()]
    return facts


def model_facts(model: str) -> dict:
    """What a model folder or a model of the Hub is made for."""
    from itemized_clip_hf.models.load import load

    loaded, processor = load(model, "cpu")
    config, vision = loaded.config, loaded.config.vision
    scans = "sequence names" if vision.use_scan_name_encoder else f"{vision.max_num_scans} positions"
    return {
        "domain": config.domain or "none",
        "parameters": f"{sum(p.numel() for p in loaded.parameters()):,}",
        "input of a scan": f"{vision.num_channels} x {' x '.join(map(str, vision.image_shape))}",
        "patch": " x ".join(map(str, vision.patch_shape)),
        "tokens of a scan": vision.grid_size[0] * vision.grid_size[1] * vision.grid_size[2],
        "scans told apart by": scans,
        "attention": " ".join(vision.layer_scopes),
        "text tower": f"{config.text.model_type}, {config.text.num_hidden_layers} layers",
        "longest item": f"{processor.tokenizer.model_max_length} tokens",
        "fit": processor.image_processor.fit,
        "orientation": processor.image_processor.orientation or "as stored",
    }
