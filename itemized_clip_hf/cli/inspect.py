"""Check studies before a model sees them: orientation, spacing, coverage, units, patient data; and say what to do."""

import json
import sys

import click

from itemized_clip_cli import accept_option, domain_option, json_option, layout_option, volume_option


@click.command()
@click.argument("paths", nargs=-1)
@click.option("-i", "--input", "inputs", multiple=True, metavar="PATH", help="The same as an argument.")
@domain_option()
@accept_option
@layout_option
@volume_option
@click.option("--verbose", "-v", is_flag=True, help="Also notes, and how each scan got its shape.")
@json_option
def command(paths, inputs, domain, accept, layout, volume_index, verbose, as_json):
    """
    Inspect studies.

    PATHS are files, folders and lists as for predict. Every scan gets a verdict: ok, warn or refuse, with a code, what was
    found and what to do; a picture is ok or refused. Ends with status 0 if all are ok, 1 after a warning, 2 after a refusal.
    """
    from itemized_clip_hf.cli._studies import Inputs
    from itemized_clip_hf.data.checks import LEVELS, check_study
    from itemized_clip_hf.data.layout import Layout
    from itemized_clip_hf.data.open import known_codes
    from itemized_clip_hf.data.readers.read import read_study
    from itemized_clip_hf.domains import load_domain
    from itemized_clip_hf.evaluation.text_table import format_table

    if not (*paths, *inputs):
        raise click.UsageError("name at least one file, folder or list.")
    accept = known_codes(accept)
    if domain is not None:
        load_domain(domain)
    results, rows, worst = [], [], 0
    rule = Layout.of_domain(domain, layout)
    for record in Inputs((*paths, *inputs), rule):
        named = {"study": record["id"], "path": record["path"]}
        try:
            if "error" in record:
                raise ValueError(record["error"])
            if rule.pictures:
                size = picture_size(record.get("images"), domain)
                results.append({**named, "scan": None, "verdict": "ok", "shape": list(size), "problems": []})
                rows.append([record["id"], "", "ok", " x ".join(map(str, size)), "", ""])
                continue
            study = read_study(record.get("images"), record["id"], volume_index, layout=rule)
        except (OSError, ValueError, ImportError) as error:
            results.append({**named, "scan": None, "verdict": "refuse", "error": str(error)})
            rows.append([record["id"], "", "refuse", "", "", ""])
            click.echo(f"{record['id']}: refuse: {error}", err=True)
            worst = 2
            continue
        for report in check_study(study, domain, accept):
            results.append({**named, **report.to_dict()})
            worst = max(worst, {"ok": 0, "warn": 1, "refuse": 2}[report.verdict])
            facts = report.facts
            if report.scan is not None:
                spacing = " x ".join(f"{step:.4g}" for step in facts.get("spacing_mm", []))
                shape = " x ".join(map(str, facts["shape"]))
                rows.append([record["id"], report.scan, report.verdict, shape, spacing, facts.get("orientation", "")])
            where = record["id"] if report.scan is None else f"{record['id']}/{report.scan}"
            for problem in report.problems:
                if verbose or LEVELS.index(problem.level) > 0:
                    text = f"{where}: {problem.level} [{problem.code}] {problem.found}: {problem.advice}"
                    click.echo(text, err=True)
            if verbose and not as_json:
                for step in facts.get("history", []):
                    click.echo(f"{where}: {step}", err=True)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    else:
        click.echo(format_table(["study", "scan", "verdict", "shape", "spacing (mm)", "axes"], rows))
    sys.exit(worst)


def picture_size(picture, domain: str) -> tuple[int, int]:
    """
    Height and width of a picture that the domain's processor takes.

    Raises:
        ValueError, OSError: it does not, and why.
    """
    from itemized_clip_hf import ItemizedCLIPImageProcessor

    source = ItemizedCLIPImageProcessor.from_domain(domain).process_study(picture)[0].source
    return source.size[::-1] if hasattr(source, "getexif") else source.shape[:2]
