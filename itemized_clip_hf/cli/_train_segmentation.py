"""`train --task segmentation`: a model that draws masks, from masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from itemized_clip_hf.trainer.interrupts import Interrupts
    from itemized_clip_hf.trainer.run_record import RunRecord

REQUIRED = ("model",)
TAKES = frozenset({"model", "eval_data", "tokenizer", "images_column", "items_column", "accept", "layout", "patience"})
OPTIONS = (
    click.Option(
        ["--class", "classes"],
        multiple=True,
        metavar="NAME",
        help="[segmentation] Class 1, 2, ... of label maps; repeat. Without it: a mask for every item.",
    ),
    click.Option(
        ["--train"],
        type=click.Choice(["decoder", "all"]),
        default="decoder",
        show_default=True,
        help="[segmentation] What learns: the mask decoder alone, or the model, too.",
    ),
    click.Option(["--channels"], type=int, help="[segmentation] Width of a fresh decoder in full resolution."),
    click.Option(
        ["--item-dropout"], type=float, help="[segmentation] Share of the items whose words a step hides from the decoder."
    ),
    click.Option(
        ["--max-items"], type=click.IntRange(min=1), default=3, show_default=True,
        help="[segmentation] Most items of a study at a step.",
    ),
    click.Option(
        ["--drawn-scans"],
        type=click.IntRange(min=1),
        help="[segmentation] Scans of a study that a step draws; the model sees the others, too.",
    ),
)  # fmt: skip


def run(
    options: dict[str, Any],
    settings: dict[str, Any],
    resume: bool,
    interrupts: Interrupts,
    record: RunRecord,
) -> dict[str, Any]:
    """Trains a model that draws masks; its summary."""
    from itemized_clip_hf.trainer.supervised.segmentation import SegmentationOptions, train_segmenter

    stated = dict(options)
    if stated.get("classes"):
        stated["classes"] = tuple(stated["classes"])
    trainer, results = train_segmenter(SegmentationOptions(**stated), settings, resume, interrupts, record)
    summary = {"output": stated["output"], "steps": trainer.state.global_step, "left_out": trainer.studies_left_out}
    figures = results.get("trained", {}).get("figures", {}).get("all findings", {})
    for name in ("dice", "surface_distance"):
        if name in figures:
            summary[name] = round(figures[name]["value"], 4)
    return summary
