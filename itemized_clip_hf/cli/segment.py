"""Draw what texts name: a mask of each in the grid of each scan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import (
    accept_option,
    device_option,
    input_option,
    json_option,
    layout_option,
    model_option,
    prompt_option,
    say_what_stays,
    volume_option,
)

if TYPE_CHECKING:
    from itemized_clip_hf.cli._studies import Inputs
    from itemized_clip_hf.evaluation.masks import ComparedMask
    from itemized_clip_hf.explain.masks import MaskOptions


@click.command()
@input_option
@model_option
@prompt_option
@click.option("-o", "--output", required=True, type=click.Path(file_okay=False), help="Folder of the masks.")
@click.option(
    "--threshold", default=0.5, show_default=True, help="Probability from which a voxel belongs to a finding."
)
@click.option("--keep-largest", type=int, metavar="N", help="Keep the N largest connected components of each mask.")
@click.option("--fill-holes", is_flag=True, help="Also take what a mask encloses.")
@click.option("--overlap", default=0.5, show_default=True, help="Of windows, where a scan is larger than the field.")
@click.option(
    "--masks",
    "compare",
    is_flag=True,
    help="Compare with the masks that the list names (masks, absent, label_map): Dice and surface distance in figures.json.",
)
@volume_option
@accept_option
@layout_option
@device_option
@json_option
def command(
    inputs: tuple[str, ...],
    model: str,
    prompts: tuple[str, ...],
    output: str,
    threshold: float,
    keep_largest: int | None,
    fill_holes: bool,
    overlap: float,
    compare: bool,
    volume_index: int | None,
    accept: tuple[str, ...],
    layout: str | None,
    device: str,
    as_json: bool,
) -> None:
    """
    Draw what texts name, by a model with a mask decoder (`train --task segmentation`).

    Every study gets a folder with one mask per item and scan: uint8 NIfTI with the scan's own affine and shape, 1 inside, 0
    also outside of the model's field, which masks.json tells as a share of the scan; PNG of pictures. Without -p a study's own
    items are drawn, or the prompts of the model's domain; a model of classes takes none. A study that cannot be used is listed
    in quarantine.csv. A run that was stopped goes on when the same command is run again.
    """
    from itemized_clip_hf.cli._studies import Inputs, Opener, require_inputs
    from itemized_clip_hf.data.files import hold_output
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.explain.masks import MaskOptions
    from itemized_clip_hf.models.segmenter import load_segmenter

    if compare and prompts:
        raise click.UsageError("--masks compares the items of the list with its masks: leave out -p.")
    options = MaskOptions(threshold, keep_largest, fill_holes, overlap)
    require_inputs(inputs)
    place = Path(output)
    place.mkdir(parents=True, exist_ok=True)
    click.get_current_context().with_resource(hold_output(place))
    say_what_stays(place)
    loaded, processor = load_segmenter(model, device)
    processor.image_processor.accept = accept
    if prompts and not loaded.mask_decoder.by_item:
        raise click.UsageError("the model draws its classes and takes no texts: leave out -p.")
    rule = Layout.of_processor(processor, layout)
    records = Inputs(inputs, rule)
    if compare:
        attach_masks(records, inputs)
    opener = Opener(volume_index, loaded.config.domain, accept, rule)
    run = Segmenting(loaded, processor, opener, options, place, model, compare)
    run.draw_all(records, prompts, [volume_index, sorted(accept), layout, records.fingerprint()[1]])
    run.report(as_json)
    if run.errors:
        raise click.ClickException(
            f"{len(run.errors)} of {len(records)} studies could not be drawn: see quarantine.csv"
        )


def attach_masks(records: Inputs, inputs: tuple[str, ...]) -> None:
    """Has the records hold their masks; raises where a list has none."""
    from itemized_clip_hf.data.studies.masks import with_masks

    records.sources = [with_masks(source, name) for source, name in zip(records.sources, inputs)]


class Segmenting:
    """
    Draws study by study; `entries` are of all masks, `errors` of the studies that could not be drawn.

    Args:
        model, processor: from `load_segmenter`.
        opener: of a record's images.
        place: folder of the folders.
        origin: the model's name.
        compare: with the masks of the records.
    """

    def __init__(
        self, model: Any, processor: Any, opener: Any, options: MaskOptions, place: Path, origin: str, compare: bool
    ):
        self.model, self.processor, self.opener, self.options = model, processor, opener, options
        self.place, self.origin, self.compare = place, origin, compare
        self.entries: list[dict[str, Any]] = []
        self.rows: list[ComparedMask] = []
        self.errors: dict[str, Exception] = {}

    def draw_all(self, records: Inputs, prompts: tuple[str, ...], about: list[Any]) -> None:
        """Draws what is not there yet, and says how it goes."""
        from itemized_clip_hf.data.files import is_about_output

        for record, folder, facts in self._plan(records, prompts, about):
            try:
                self._draw(record, folder, facts)
            except (OSError, ValueError) as error:
                if is_about_output(error):
                    raise
                self.errors[record["id"]] = error
                click.echo(f"{record['id']}: {error}", err=True)
        self._write_quarantine()

    def _plan(
        self, records: Inputs, prompts: tuple[str, ...], about: list[Any]
    ) -> Iterator[tuple[dict[str, Any], Path, dict[str, Any]]]:
        """Of each study its record, its folder, and what its masks are made of."""
        from itemized_clip_hf.data.files import file_name
        from itemized_clip_hf.explain.studies import unique
        from itemized_clip_hf.provenance import hash_json, hash_model, hash_processor

        hashes = [hash_model(self.model), hash_processor(self.processor), asdict(self.options), *about]
        folders: set[str] = set()
        for record in records:
            folder = self.place / unique(file_name(record["id"], "study"), folders)
            truth = [str(record.get(name)) for name in ("masks", "label_map", "mask_scan", "findings")]
            wanted = [list(prompts), record.get("items"), record.get("absent"), *(truth if self.compare else [])]
            yield (
                record,
                folder,
                {"id": record["id"], "made_of": hash_json([hashes, record["id"], wanted]), "prompts": prompts},
            )

    def _draw(self, record: dict[str, Any], folder: Path, facts: dict[str, Any]) -> None:
        from itemized_clip_hf.evaluation.masks import ComparedMask, compare_study
        from itemized_clip_hf.explain.mask_files import known_masks, list_masks, write_masks
        from itemized_clip_hf.explain.masks import class_names, draw_study
        from itemized_clip_hf.models.load import say_origin

        known = known_masks(folder, facts["made_of"])
        if known is None:
            images = self.opener(record)
            texts, truth = self._texts(record, facts["prompts"])
            drawn = draw_study(
                self.model, self.processor, images, texts, self.options, self._say_bad_scan(record["id"])
            )
            names = texts or class_names(self.model)
            rows = [] if truth is None else compare_study(record["id"], drawn, truth, names)
            known = {"masks": write_masks(folder, record["id"], drawn), "notes": drawn.notes}
            known["compared"] = [asdict(row) for row in rows]
            own = {"id": facts["id"], "made_of": facts["made_of"], "model": say_origin(self.origin)}
            list_masks(folder, {**own, "notes": known["notes"], "compared": known["compared"]}, known["masks"])
        for note in known["notes"]:
            click.echo(f"{record['id']}: {note}", err=True)
        self.rows += [ComparedMask(**row) for row in known["compared"]]
        self.entries += [{**entry, "path": record["path"], "notes": known["notes"]} for entry in known["masks"]]

    def _texts(self, record: dict[str, Any], prompts: tuple[str, ...]) -> tuple[list[str], Any]:
        """What is drawn of a study, and its known masks, where they are compared with."""
        from itemized_clip_hf.cli._studies import choose_prompts
        from itemized_clip_hf.data.studies.masks import StudyMasks
        from itemized_clip_hf.evaluation.masks import texts_of

        if self.compare:
            truth = StudyMasks.of_record(record)
            return texts_of(self.model, truth), truth
        if not self.model.mask_decoder.by_item:
            return [], None
        texts = list(prompts) or record.get("items")
        return texts or [own[0] for own in choose_prompts((), None, self.model.config.domain).values()], None

    @staticmethod
    def _say_bad_scan(study: str) -> Any:
        return lambda scan, error: click.echo(f"{study}, scan {scan} left out: {error}", err=True)

    def _write_quarantine(self) -> None:
        from itemized_clip_hf.data.files import whole_file
        from itemized_clip_hf.data.tables import write_csv

        path = self.place / "quarantine.csv"
        if not self.errors:
            path.unlink(missing_ok=True)
            return
        with whole_file(path) as temporary:
            write_csv(temporary, [("study", "reason"), *((name, str(error)) for name, error in self.errors.items())])

    def report(self, as_json: bool) -> None:
        """JSON, or a table of the masks, and the figures where masks were compared."""
        from itemized_clip_hf.data.files import write_text
        from itemized_clip_hf.evaluation.masks import as_result
        from itemized_clip_hf.evaluation.text_table import format_table, null_for_nan
        from itemized_clip_hf.models.load import say_origin

        figures: dict[str, Any] = {}
        if self.compare:
            result = as_result(self.rows, self.errors)
            figures = null_for_nan(
                {**result.to_dict(), "model": say_origin(self.origin), "settings": asdict(self.options)}
            )
            write_text(self.place / "figures.json", json.dumps(figures, indent=1) + "\n")
        if as_json:
            click.echo(json.dumps({"masks": self.entries, **({"figures": figures} if figures else {})}, indent=1))
            return
        rows = [[e["id"], e["item"], e["scan"] or "", e["voxels"], e["volume_ml"]] for e in self.entries]
        click.echo(
            format_table(["study", "item", "scan", "voxels", "ml"], [["" if c is None else c for c in r] for r in rows])
        )
        if self.compare:
            names = ["dice", "surface_distance", "missed", "marked_if_absent"]
            table = [[name, *(str(own[m]) if m in own else "" for m in names)] for name, own in result.figures.items()]
            click.echo(
                format_table(
                    ["finding", "dice (%)", "surface distance (mm)", "missed (%)", "marked if absent (%)"], table
                )
            )
