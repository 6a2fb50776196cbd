"""Compare reports with their images: items with a low score, findings with a high one that no item mentions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import (
    accept_option,
    calibration_option,
    device_option,
    input_option,
    json_option,
    layout_option,
    model_option,
    precision_option,
    prompt_option,
    say_what_stays,
    tokenizer_option,
    volume_option,
    workers_option,
)

if TYPE_CHECKING:
    from itemized_clip_hf.cli._studies import Inputs
    from itemized_clip_hf.explain.review import Question, Review
    from itemized_clip_hf.explain.studies import StudyToExplain

COLUMNS = ("id", "kind", "text", "score", "threshold", "percentile", "nearest_item", "text_similarity", "folder")


@click.command()
@input_option
@model_option
@prompt_option
@click.option("--prompts", "prompt_file", type=click.Path(exists=True), help="JSON or YAML file: finding -> prompts.")
@click.option("-o", "--output", default="review", show_default=True, type=click.Path(file_okay=False))
@click.option(
    "--low",
    default=5.0,
    show_default=True,
    type=click.FloatRange(0, 100),
    help="Percentile of the scores of all items below which an item is asked about.",
)
@click.option(
    "--high",
    type=click.FloatRange(0, 100),
    help="Percentile of a finding's scores, in the studies whose report mentions it, above which it is asked about elsewhere. "
    "Without it the operating point of the model's calibration, or 50 where it has none.",
)
@calibration_option
@click.option("--point", metavar="RULE", help="Operating point of the calibration, instead of its own.")
@click.option(
    "--html", is_flag=True, help="Also write a page with table and viewer for each study that is asked about."
)
@click.option("--maps/--no-maps", default=True, show_default=True, help="Write heat maps of what is asked about.")
@click.option("--batch-size", default=4, show_default=True, help="Studies of one pass through the model.")
@workers_option
@precision_option
@tokenizer_option
@volume_option
@accept_option
@layout_option
@device_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    inputs: tuple[str, ...],
    model: str,
    output: str,
    low: float,
    high: float | None,
    as_json: bool,
    batch_size: int,
    **options: Any,
) -> None:
    """
    Take a second look at reports.

    Inputs are lists of studies with `items`, as `itemize` makes them of reports. Two kinds of question are asked: whether an
    item is in the images that scores low ("unsupported"), and whether a finding of the prompts is there that scores high and
    that no item mentions ("missing"). An item mentions a finding by its words, or else by the text tower. What is low, and
    without a calibration what is high, is told by the cohort itself, so that a list of a few studies says little.

    They are questions to a reader, not findings. OUTPUT gets review.json, review.csv, and a folder per study that is asked
    about, with a PNG and NIfTI heat maps per question, as `explain` writes them. Run the same command again to go on with a run
    that was stopped.
    """
    from itemized_clip_hf.cli._studies import require_inputs
    from itemized_clip_hf.cli.explain import hold_place

    require_inputs(inputs)
    place = hold_place(output)
    say_what_stays(place)
    run = ReviewRun(inputs, model, place, options)
    review = run.ask(low, high, batch_size, progress=not as_json)
    folders, failed = run.draw(review) if options["maps"] or options["html"] else ({}, 0)
    content = run.write(review, folders)
    if as_json:
        click.echo(json.dumps(content, indent=1))
    else:
        print_review(review)
        click.echo(f"written: {place}", err=True)
    if failed or run.kept.errors:
        raise click.ClickException(f"{failed + len(run.kept.errors)} studies could not be looked at")


class ReviewRun:
    """
    A review of all studies of the inputs.

    Args:
        place: folder that is written, which nobody else writes.
        options: of the verb.
    """

    def __init__(self, inputs: tuple[str, ...], model: str, place: Path, options: dict[str, Any]):
        from itemized_clip_hf.cli._studies import Inputs, Opener, choose_prompts
        from itemized_clip_hf.data.layout import Layout
        from itemized_clip_hf.models.load import load
        from itemized_clip_hf.models.precision import weights_dtype
        from itemized_clip_hf.provenance import describe_for_others, hash_json, hash_model, hash_processor

        self.place, self.options, self.name = place, options, model
        dtype = weights_dtype(options["precision"])
        self.model, self.processor = load(model, options["device"], options["tokenizer"], dtype=dtype)
        self.processor.image_processor.accept = options["accept"]
        rule = Layout.of_processor(self.processor, options["layout"])
        self.records = Inputs(inputs, rule)
        self.opener = Opener(options["volume_index"], self.model.config.domain, options["accept"], rule)
        self.prompts = choose_prompts(options["prompts"], options["prompt_file"], self.model.config.domain)
        self.items = items_of(self.records)
        hashes = [hash_model(self.model), hash_processor(self.processor)]
        self.about = describe_for_others(self.model, *hashes)
        texts = [self.items, list(self.prompts.items())]
        opened = [self.opener.settings(), options["precision"]]
        self.described = {"of": [*hashes, hash_json([self.records.fingerprint(), texts, opened])]}
        self.kept: Any = None

    def choose_thresholds(self, high: float | None) -> tuple[float, dict[str, float], str]:
        """
        The percentile of findings, and what a calibration has in its place.

        Raises:
            click.UsageError: both are asked for. ValueError: the calibration is of another model.
        """
        from itemized_clip_hf.evaluation.calibration import load_calibration
        from itemized_clip_hf.explain.review import HIGH, calibrated_thresholds

        source, point = self.options["calibration"], self.options["point"]
        if (source or point) and high is not None and source != "none":
            raise click.UsageError("--high takes the place of a calibration: leave one of them out.")
        if high is not None or self.options["precision"] == "bf16":
            return HIGH if high is None else high, {}, ""
        calibration = load_calibration(self.model, self.processor, source, point, folder=self.name)
        return HIGH, *calibrated_thresholds(calibration, self.prompts)

    def ask(self, low: float, high: float | None, batch_size: int, progress: bool) -> Review:
        """Scores what has no scores yet, and finds the questions."""
        from itemized_clip_hf.cli._studies import OpenOneByOne
        from itemized_clip_hf.cli.explain import say_bad_scan
        from itemized_clip_hf.evaluation.score_file import ScoreFile
        from itemized_clip_hf.explain.review import embed_reports, find_questions, score_reports
        from itemized_clip_hf.models.precision import working_precision
        from itemized_clip_hf.provenance import hash_json

        percentile, thresholds, source = self.choose_thresholds(high)
        self.made_of = hash_json([self.described, low, percentile, thresholds])
        self.refuse_another()
        self.kept = ScoreFile(self.place / "scores.jsonl", self.described)
        for name, own in zip(self.records.ids, self.items):
            if not own:
                self.refuse(name, ValueError("it has no items: there is no report to look at."))
        done = {*self.kept.scores, *self.kept.errors}
        studies = OpenOneByOne(self.records, self.opener, done)
        names = studies.names
        with working_precision(self.model, self.options["precision"]):
            reports, *embeds = embed_reports(self.model, self.processor, self.records.ids, self.items, self.prompts)
            score_reports(
                self.model,
                self.processor,
                reports,
                (embeds[0], embeds[1]),
                studies,
                names,
                self.kept,
                batch_size=batch_size,
                progress="scoring" if progress else None,
                on_error=lambda number, error: self.refuse(names[number], error),
                on_bad_scan=lambda number, scan, error: say_bad_scan(names[number], scan, error),
                num_workers=self.options["workers"],
            )
        return find_questions(reports, low, percentile, thresholds, source)

    def refuse(self, name: str, error: Exception) -> None:
        """Says and keeps why a study is not looked at."""
        self.kept.refuse(name, error)
        click.echo(f"{name}: {error}", err=True)

    def refuse_another(self) -> None:
        """Raises a ValueError where the folder holds another review."""
        from itemized_clip_hf.specs import read_json

        file = self.place / "review.json"
        if file.exists() and read_json(file, dict, max_bytes=1 << 30).get("made_of") != self.made_of:
            raise ValueError(f"{self.place} holds another review: choose another output, or delete it.")

    def draw(self, review: Review) -> tuple[dict[str, str], int]:
        """Heat maps, and pages, of what is asked: folder of each study, and the number of studies that failed."""
        from itemized_clip_hf.cli.explain import write_all
        from itemized_clip_hf.evaluation.encode import in_order
        from itemized_clip_hf.explain.attribution import BEST
        from itemized_clip_hf.explain.studies import write_study
        from itemized_clip_hf.models.load import say_origin
        from itemized_clip_hf.models.precision import working_precision

        asked: dict[str, list[Question]] = {}
        for question in review.questions:
            asked.setdefault(question.study, []).append(question)
        folders: dict[str, str] = {}
        with working_precision(self.model, self.options["precision"]):
            write = partial(write_study, self.model, self.processor, about=self.about, attribution=BEST)
            jobs = self.list_studies(asked, folders)
            _, failed = write_all(in_order(jobs, self.options["workers"]), write, say_origin(self.name))
        return folders, failed

    def list_studies(
        self, asked: dict[str, list[Question]], folders: dict[str, str]
    ) -> Iterator[partial[StudyToExplain]]:
        """What opens each study that is asked about in its turn; its folder is noted."""
        from itemized_clip_hf.data.files import file_name
        from itemized_clip_hf.explain.review import CAUTION, MISSING
        from itemized_clip_hf.explain.studies import StudyToExplain, unique
        from itemized_clip_hf.provenance import hash_json

        used: set[str] = set()
        for record in self.records:
            questions = asked.get(record["id"])
            if not questions:
                continue
            texts = {q.wording: self.prompts[q.text] if q.kind == MISSING else [q.text] for q in questions}
            folder = self.place / unique(file_name(record["id"], "study"), used)
            folders[record["id"]] = folder.name
            page = self.place / f"{folder.name}.html" if self.options["html"] else None
            made_of = hash_json([self.made_of, record["id"], texts])
            yield partial(StudyToExplain, record, texts, folder, made_of, self.opener, page, notes=[CAUTION])

    def write(self, review: Review, folders: dict[str, str]) -> dict[str, Any]:
        """review.csv, and then review.json, whose content is returned."""
        from itemized_clip_hf.data.files import whole_file, write_text
        from itemized_clip_hf.data.tables import write_csv

        rows = [
            [q.study, q.kind, q.text, q.score, q.threshold, q.percentile, q.nearest or "", q.text_similarity]
            for q in review.questions
        ]
        with whole_file(self.place / "review.csv") as temporary:
            write_csv(temporary, [COLUMNS, *([*row, folders.get(str(row[0]), "")] for row in rows)])
        left_out = [{"id": name, "reason": reason} for name, reason in sorted(self.kept.errors.items())]
        content = {**review.to_dict(), **self.about, "made_of": self.made_of, "unreadable": left_out}
        for question in content["questions"]:
            question["folder"] = folders.get(question["study"])
        write_text(self.place / "review.json", json.dumps(content, indent=1) + "\n")
        return content


def items_of(records: Inputs) -> list[list[str]]:
    """
    Items of every study of the inputs, images left closed.

    Raises:
        ValueError: no study has any.
    """
    items: list[list[str]] = []
    for source in records.sources:
        listed = source.items() if source.items_column is not None else [[]] * len(source)
        items += [list(own or ()) for own in listed]
    if not any(items):
        raise ValueError("no study has items: a review needs a list with `items`; `itemize` makes it of reports.")
    return items


def print_review(review: Review) -> None:
    """The questions as a table, and what they rest on."""
    from itemized_clip_hf.evaluation.text_table import format_table
    from itemized_clip_hf.explain.review import CAUTION

    rows = [[q.study, q.kind, q.score, q.threshold, f"{q.percentile:.0f}", q.text] for q in review.questions]
    if rows:
        click.echo(format_table(["study", "kind", "score", "threshold", "percentile", "finding or item"], rows))
    click.echo(f"{len(rows)} questions about {review.studies} reports. {CAUTION}")
    click.echo(f"item: asked about below {review.low:.4f}, {review.describe_low()}")
    for name, source in review.sources.items():
        above = review.high[name]
        click.echo(
            f"{name}: " + (f"not asked about, {source}" if isnan(above) else f"asked about above {above:.4f}, {source}")
        )
