"""Learn from generated studies in minutes, score unseen ones and show where the model looked."""

import json
import time
from pathlib import Path

import click
from itemized_clip_cli import json_option

SETTINGS = {
    "studies": 3000,
    "test_studies": 400,
    "steps": 600,
    "batch_size": 64,
    "learning_rate": 1e-3,
}


@click.command()
@click.option("-o", "--output", default="demo-output", show_default=True, type=click.Path(file_okay=False))
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", default=SETTINGS["steps"], show_default=True, help="Optimiser steps.")
@click.option("--studies", default=SETTINGS["studies"], show_default=True, help="Generated training studies.")
@click.option("--test-studies", default=SETTINGS["test_studies"], show_default=True)
@json_option
def command(output, seed, steps, studies, test_studies, as_json):
    """
    The whole way on generated brain studies: train, score, explain, save.

    Four sequences of one head, findings of six kinds, reports as lists of items, a mask for every item. Needs neither data nor
    a GPU.
    """
    pass
