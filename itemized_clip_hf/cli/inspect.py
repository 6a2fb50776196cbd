"""Check studies before a model sees them: orientation, spacing, coverage, units, patient data; and say what to do."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import accept_option, domain_option, json_option, layout_option, volume_option

if TYPE_CHECKING:
    from itemized_clip_hf.data.checks import Report


@click.command()
@click.argument("paths", nargs=-1)
@click.option("-i", "--input", "inputs", multiple=True, metavar="PATH", help="The same as an argument.")
@domain_option()
@accept_option
@layout_option
@volume_option
@click.option("--verbose", "-v", is_flag=True, help="Also notes, and how each scan got its shape.")
@json_option
def command(
    paths: tuple[str, ...],
    inputs: tuple[str, ...],
    domain: str | None,
    accept: tuple[str, ...],
    layout: str | None,
    volume_index: int | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """
    Inspect studies.

    PATHS are files, folders and lists as for predict. Every scan gets a verdict: ok, warn or refuse, with a code, what was
    found and what to do; a picture is ok or refused. Ends with status 0 if all are ok, 1 after a warning, 2 after a refusal.
    """
    from itemized_clip_hf.cli._studies import Inputs
    from itemized_clip_hf.data.checks import VERDICTS, check_study
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.data.open import known_codes
    from itemized_clip_hf.data.readers.read import read_study

    if not (*paths, *inputs):
        raise click.UsageError("name at least one file, folder or list.")
    codes = known_codes(accept)
    rule = Layout.of_domain(domain, layout)
    inspected = _Inspected(verbose, as_json)
    for record in Inputs((*paths, *inputs), rule):
        try:
            if "error" in record:
                raise ValueError(record["error"])
            if rule.pictures:
                inspected.add_picture(record, picture_size(record.get("images"), str(domain)))
                continue
            study = read_study(record.get("images"), record["id"], volume_index, layout=rule)
        except (OSError, ValueError, ImportError) as error:
            inspected.refuse(record, error)
            continue
        for report in check_study(study, domain, codes):
            inspected.add(record, report)
    inspected.print()
    sys.exit(VERDICTS.index(inspected.verdict))


class _Inspected:
    """What was found so far; problems are printed as they are found."""

    def __init__(self, verbose: bool, as_json: bool):
        self.verbose, self.as_json = verbose, as_json
        self.results: list[dict[str, Any]] = []
        self.rows: list[list[str]] = []
        self.verdict = "ok"

    def add_picture(self, record: dict[str, Any], size: tuple[int, int]) -> None:
        self.results.append({**_name(record), "scan": None, "verdict": "ok", "shape": list(size), "problems": []})
        self.rows.append([record["id"], "", "ok", " x ".join(map(str, size)), "", ""])

    def refuse(self, record: dict[str, Any], error: Exception) -> None:
        """A study that cannot be opened."""
        self.results.append({**_name(record), "scan": None, "verdict": "refuse", "error": str(error)})
        self.rows.append([record["id"], "", "refuse", "", "", ""])
        click.echo(f"{record['id']}: refuse: {error}", err=True)
        self.verdict = "refuse"

    def add(self, record: dict[str, Any], report: "Report") -> None:
        """A scan, or what concerns the whole study."""
        from itemized_clip_hf.data.checks import LEVELS, VERDICTS

        self.results.append({**_name(record), **report.to_dict()})
        self.verdict = max(self.verdict, report.verdict, key=VERDICTS.index)
        facts = report.facts
        if report.scan is not None:
            spacing = " x ".join(f"{step:.4g}" for step in facts.get("spacing_mm", []))
            shape = " x ".join(map(str, facts["shape"]))
            axes = facts.get("orientation", "")
            self.rows.append([record["id"], report.scan, report.verdict, shape, spacing, axes])
        where = record["id"] if report.scan is None else f"{record['id']}/{report.scan}"
        for problem in report.problems:
            if self.verbose or LEVELS.index(problem.level) > 0:
                click.echo(f"{where}: {problem.level} [{problem.code}] {problem.found}: {problem.advice}", err=True)
        if self.verbose and not self.as_json:
            for step in facts.get("history", []):
                click.echo(f"{where}: {step}", err=True)

    def print(self) -> None:
        """All of it, as JSON or as a table."""
        from itemized_clip_hf.evaluation.text_table import format_table

        if self.as_json:
            click.echo(json.dumps(self.results, indent=1))
        else:
            click.echo(format_table(["study", "scan", "verdict", "shape", "spacing (mm)", "axes"], self.rows))


def _name(record: dict[str, Any]) -> dict[str, Any]:
    return {"study": record["id"], "path": record["path"]}


def picture_size(picture: Any, domain: str) -> tuple[int, int]:
    """
    Height and width of a picture that the domain's processor takes.

    Raises:
        ValueError, OSError: it does not, and why.
    """
    from itemized_clip_hf import ItemizedCLIPImageProcessor

    source = ItemizedCLIPImageProcessor.from_domain(domain).process_study(picture)[0].source
    return source.size[::-1] if hasattr(source, "getexif") else source.shape[:2]
