"""Learn from generated studies in minutes, score unseen ones and show where the model looked."""

import json
import time
from pathlib import Path
from typing import Any

import click

from itemized_clip_cli import device_option, json_option


@click.command()
@click.option("-o", "--output", default="demo-output", show_default=True, type=click.Path(file_okay=False))
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", type=int, help="Optimizer steps; the recipe's by default.")
@click.option("--studies", default=3000, show_default=True, help="Generated training studies.")
@click.option("--test-studies", default=300, show_default=True)
@device_option
@json_option
def command(
    output: str, seed: int, steps: int | None, studies: int, test_studies: int, device: str, as_json: bool
) -> None:
    """
    The whole way on generated brain studies: train, score, explain, save.

    Four sequences of one head, findings of six kinds, reports as lists of items, a mask for every item. Needs neither data
    nor a GPU.
    """
    from itemized_clip_hf.phantom import PhantomDataset
    from itemized_clip_hf.phantom.experiment import RECIPE, SCAN_SIZE, evaluate_phantom, train_phantom
    from itemized_clip_hf.recipes import load_recipe

    steps = load_recipe(RECIPE).training["max_steps"] if steps is None else steps
    start = time.time()
    folder = Path(output)
    model, processor = train_phantom(folder, seed, steps, studies, device)
    trained = time.time() - start
    test = PhantomDataset("test", test_studies, seed=seed, shape=SCAN_SIZE)
    results = evaluate_phantom(model, processor, test, folder).to_dict()
    results |= {"seed": seed, "steps": steps, "train_seconds": round(trained), "seconds": round(time.time() - start)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    click.echo(json.dumps(results, indent=1) if as_json else report(results, folder))


def report(results: dict[str, Any], folder: Path) -> str:
    """A table of the findings, the two results of all, and where the files are."""
    from itemized_clip_hf.evaluation.text_table import format_table

    rows = [
        [name, f["prompt"], f["positive"], f["auc"], f["pointing"], f["chance"]]
        for name, f in results["findings"].items()
    ]
    table = format_table(["finding", "prompt", "positive", "AUC", "pointing", "chance"], rows)
    local = ", ".join(name for name, f in results["findings"].items() if f["localised"])
    ratio = results["pointing"] / results["chance"]
    return (
        f"\nZero-shot on {results['studies']} unseen studies\n{table}\n\n"
        f"mean AUC {results['mean_auc']:.3f}\n"
        f"pointing game of the localised findings ({local}): the hottest patch touches the finding in "
        f"{results['pointing']:.1%} of the items, {ratio:.1f} times chance ({results['chance']:.1%})\n"
        f"seed {results['seed']}, {results['steps']} steps, {results['train_seconds']} s of training, "
        f"{results['seconds']} s in all\n\n"
        f"model      {folder / 'model'}\nheat maps  {folder / 'heat-maps'}\n"
        f"studies    {folder / 'studies'}, listed in {folder / 'studies.jsonl'}; one more time {folder / 'study'}\n"
        f"next       itemized-clip predict -m {folder / 'model'} -i {folder / 'study'} -p 'mass in the brain'"
    )
