"""Score studies against prompts, each prompt by itself."""

import json
import sys

import click

from itemized_clip_cli import (
    accept_option,
    device_option,
    input_option,
    json_option,
    model_option,
    prompt_option,
    tokenizer_option,
    volume_option,
)


@click.command()
@input_option
@model_option
@prompt_option
@click.option(
    "--prompts", "prompt_file", type=click.Path(exists=True), help="JSON or YAML file: label -> prompt or prompts."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="CSV file of the scores.")
@click.option("--batch-size", default=4, show_default=True)
@tokenizer_option
@volume_option
@accept_option
@device_option
@json_option
def command(inputs, model, prompts, prompt_file, output, batch_size, tokenizer, volume_index, accept, device, as_json):
    """
    Score studies against prompts.

    Inputs are files, DICOM folders and zips, folders of volumes (one study), folders of studies, and .jsonl, .csv or .parquet
    lists. Without prompts those of the model's domain are used. Where a list has labels, metrics are added.
    """
    import csv

    import numpy as np

    from itemized_clip_hf.cli._studies import Inputs, Opener, OpenOneByOne, choose_prompts
    from itemized_clip_hf.evaluation.text_table import format_table
    from itemized_clip_hf.evaluation.zero_shot import score_studies
    from itemized_clip_hf.hub.load import UNTRAINED, load

    records = Inputs(inputs)
    loaded, processor = load(model, device, tokenizer)
    if model.startswith(UNTRAINED):
        click.echo("note: random weights, the scores mean nothing", err=True)
    wanted = choose_prompts(prompts, prompt_file, loaded.config.domain)
    failed: dict[int, str] = {}
    studies = OpenOneByOne(records, Opener(volume_index, loaded.config.domain, accept))

    def on_error(number, error):
        failed[number] = str(error)
        click.echo(f"{studies.seen[number]['id']}: {error}", err=True)

    def on_bad_scan(number, scan, error):
        click.echo(f"{studies.seen[number]['id']}, scan {scan} left out: {error}", err=True)

    labels, scores = score_studies(
        loaded,
        processor,
        studies,
        wanted,
        batch_size=batch_size,
        progress=len(records) > batch_size and not as_json,
        on_error=on_error,
        on_bad_scan=on_bad_scan,
    )
    ids = [record["id"] for record in studies.seen]
    metrics = label_metrics(studies.seen, labels, scores)
    if output:
        with open(output, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *labels])
            writer.writerows([name, *row] for name, row in zip(ids, scores.tolist()))
    if as_json:
        results = [
            {"id": name, "scores": dict(zip(labels, row))}
            if number not in failed
            else {"id": name, "error": failed[number]}
            for number, (name, row) in enumerate(zip(ids, scores.tolist()))
        ]
        click.echo(json.dumps({"results": results, **({"metrics": metrics} if metrics else {})}, indent=1))
    else:
        if len(ids) <= 10:
            rows = [[label, *(float(row[j]) for row in scores)] for j, label in enumerate(labels)]
            click.echo(format_table(["prompt", *ids], rows))
        elif not output:
            click.echo(f"{len(ids)} studies scored; -o FILE.csv keeps the scores")
        if metrics:
            click.echo(format_table(["metric", "value"], [[name, value] for name, value in metrics.items()]))
    if failed:
        click.echo(f"{len(failed)} of {len(ids)} studies could not be scored", err=True)
        sys.exit(1)
    if np.isnan(scores).any():
        raise ValueError("the model gave scores that are not numbers: its weights are damaged.")


def label_metrics(records, labels, scores) -> dict[str, float]:
    """AUC of every finding, or top-1, top-5 and mean rank where each study has one class."""
    import numpy as np

    from itemized_clip_hf.evaluation.metrics import auroc, classification_summary
    from itemized_clip_hf.evaluation.zero_shot import match_class

    seen = ~np.isnan(scores).any(axis=1)
    if all(isinstance(record.get("labels"), dict) for record in records):
        aucs = {
            f"AUC {label}": auroc([truth(r, label) for r, ok in zip(records, seen) if ok], scores[seen, j])
            for j, label in enumerate(labels)
            if all(label in record["labels"] for record in records)
        }
        return {**aucs, "AUC mean": float(np.nanmean(list(aucs.values())))} if aucs else {}
    if all(isinstance(record.get("label"), str) for record in records):
        classes = [match_class(record["label"], labels) for record in records]
        known = [i for i, name in enumerate(classes) if seen[i] and name is not None]
        if not known:
            return {}
        summary = classification_summary(scores[known], [labels.index(classes[i]) for i in known])
        return {"studies": len(known), "left out (class without a prompt)": int(seen.sum()) - len(known), **summary}
    return {}


def truth(record, label: str) -> bool:
    value = record["labels"][label]
    if value not in (0, 1):
        raise ValueError(f"{record['id']}: the label {label!r} is {value!r}, expected 0, 1, true or false.")
    return bool(value)
