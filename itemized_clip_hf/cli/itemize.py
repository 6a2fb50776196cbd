"""Turn reports or captions into lists of items."""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from itemized_clip_cli import json_option

if TYPE_CHECKING:
    from itemized_clip_hf.data.reports.sources import Sources
    from itemized_clip_hf.domains import Domain


@click.command()
@click.option(
    "-i", "--input", "source", required=True, metavar="PATH", help="Reports: .jsonl, .jsonl.gz, .csv or .parquet."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="JSONL file of the items.")
@click.option("--kind", type=click.Choice(["report", "captions"]), default="report", show_default=True)
@click.option(
    "--domain", help="Whose normal rule holds, e.g. chest-ct; without it the normal item suits all of radiology."
)
@click.option("--text-column", "text_columns", multiple=True, help="Column of text; repeat to join several.")
@click.option("--id-column", help="Column of ids; found by name if left out.")
@click.option("--keep-text", is_flag=True, help="Write the texts of the reports, too.")
@click.option("--write-prompts", type=click.Path(dir_okay=False), help="JSONL file of prompts for a language model.")
@click.option(
    "--read-answers", type=click.Path(exists=True, dir_okay=False), help="JSONL file of its answers: id, answer."
)
@click.option(
    "--rejected", type=click.Path(dir_okay=False), help="JSONL file of rejected answers; OUTPUT.rejected.jsonl."
)
@json_option
def command(
    source: str,
    output: str | None,
    kind: str,
    domain: str | None,
    text_columns: tuple[str, ...],
    id_column: str | None,
    keep_text: bool,
    write_prompts: str | None,
    read_answers: str | None,
    rejected: str | None,
    as_json: bool,
) -> None:
    """
    Turn reports or captions into lists of items.

    Reports are split into sentences; statements of absence and normality, remarks and repeats are removed by rules, each with
    its reason. Captions only lose their repeats. Lines of the output hold id, items, spans (characters of the report, its
    columns joined by an empty line), is_normal, removed, and the input's other columns; texts stay out unless --keep-text.

    Columns of labels, one for each finding, whose cells are all 1 or 0 (true or false, yes or no; nothing or -1 for unknown),
    become `labels`: {finding: 1, 0 or null}, which prepare, predict and evaluate take.

    A language model can take the place of the rules: --write-prompts writes what to ask it, --read-answers takes its verified
    answers. Where there is none that holds, the rules' items are used.
    """
    from itemized_clip_hf.data.reports.itemize import normal_item
    from itemized_clip_hf.data.reports.llm_items import make_prompt
    from itemized_clip_hf.data.reports.sources import read_sources, write_jsonl
    from itemized_clip_hf.domains import load_domain

    if not output and not write_prompts:
        raise click.UsageError("nothing to do: pass -o ITEMS.jsonl, or --write-prompts FILE.")
    if read_answers and not output:
        raise click.UsageError("--read-answers needs -o ITEMS.jsonl for the items.")
    facts = load_domain(domain) if domain else None
    sources = read_sources(source, kind, text_columns, id_column, keep_text)
    for line in _columns(sources):
        click.echo(line, err=True)
    summary: dict[str, Any] = {"reports" if kind == "report" else "pictures": len(sources)}
    if write_prompts:
        normal = normal_item(facts)
        prompts = ({"id": s.id, "messages": make_prompt(s.text, kind, normal)} for s in sources if s.text)
        summary["prompts"] = write_jsonl(write_prompts, prompts)
    if output:
        answers: dict[str, list[str]] | None = None
        if read_answers:
            rejected = rejected or f"{output.removesuffix('.jsonl')}.rejected.jsonl"
            answers, counts = _read_answers(read_answers, rejected, sources, kind, facts)
            summary |= counts
        rows = list(_rows(sources, kind, facts, answers, keep_text, as_json))
        write_jsonl(output, rows)
        summary["items"] = sum(len(row["items"]) for row in rows)
        summary["removed"] = _count(part["reason"] for row in rows for part in row["removed"])
        summary["normal"] = sum(row["is_normal"] for row in rows)
        summary["empty"] = sum(not row["items"] for row in rows)
    click.echo(json.dumps(summary, indent=1) if as_json else _describe(summary))


def _read_answers(
    answers_file: str, rejected_file: str, sources: "Sources", kind: str, domain: "Domain | None"
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Items of the answers that hold, and counts for the summary; the rest is written to its file."""
    from itemized_clip_hf.data.reports.llm_items import read_answers
    from itemized_clip_hf.data.reports.sources import write_jsonl

    with open(answers_file, encoding="utf-8") as file:
        answers, rejected = read_answers(file, {source.id: source.text for source in sources}, kind, domain)
    write_jsonl(rejected_file, (entry.as_dict() for entry in rejected))
    return answers, {"answers used": len(answers), "rejected": _count(entry.reason for entry in rejected)}


def _describe(summary: dict[str, Any]) -> str:
    lines = []
    for name, value in summary.items():
        if isinstance(value, dict):
            lines.append(f"{name:<16}{sum(value.values()):>8}")
            lines += [f"  {reason:<22}{count:>8}" for reason, count in value.items()]
        else:
            lines.append(f"{name:<16}{value:>8}")
    return "\n".join(lines)


def _columns(sources: "Sources") -> list[str]:
    """What became of the columns of the input, for people."""
    lines = [f"labels: {', '.join(sources.labels)}"] if sources.labels else []
    lines += [
        f"{column} is not taken for labels: {count} of {len(sources)} cells are not truth values"
        for column, count in sources.strange.items()
    ]
    if sources.kept:
        lines.append(f"kept as they are: {', '.join(sources.kept)}")
    if sources.left_out:
        lines.append(f"left out (texts and images): {', '.join(sources.left_out)}")
    return lines


def _rows(
    sources: "Sources",
    kind: str,
    domain: "Domain | None",
    answers: dict[str, list[str]] | None,
    keep_text: bool,
    quiet: bool,
) -> Iterator[dict[str, Any]]:
    """Lines of the output; they say where their items are from where there are answers."""
    from tqdm import tqdm

    from itemized_clip_hf.data.reports.itemize import itemize_captions, itemize_report

    for source in tqdm(sources, desc="itemize", unit="report", disable=quiet or len(sources) < 500):
        if kind == "captions":
            itemized = itemize_captions(source.text)
        else:
            itemized = itemize_report(str(source.text), domain)
        items, spans, is_normal = itemized.items, itemized.spans, itemized.is_normal
        if answers and source.id in answers:
            items = answers[source.id]
            spans = [None] * len(items)
            is_normal = is_normal and items == itemized.items
        removed = itemized.as_dict()["removed"]
        if not keep_text:
            removed = [{name: value for name, value in part.items() if name != "text"} for part in removed]
        row = {
            **source.others,
            "id": source.id,
            "items": items,
            "spans": spans,
            "is_normal": is_normal,
            "removed": removed,
        }
        if answers is not None:
            row["items_from"] = "answer" if source.id in answers else "rules"
        if keep_text:
            row["text"] = source.text
        yield row


def _count(values: Iterable[str]) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(values).most_common())
