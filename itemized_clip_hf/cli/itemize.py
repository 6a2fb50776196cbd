"""Turn reports or captions into lists of items."""

import json

import click

from itemized_clip_cli import json_option


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
    source,
    output,
    kind,
    domain,
    text_columns,
    id_column,
    keep_text,
    write_prompts,
    read_answers,
    rejected,
    as_json,
):
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
    from itemized_clip_hf.data.reports import llm_items as rewrite
    from itemized_clip_hf.data.reports.itemize import normal_item
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
    summary: dict = {"reports" if kind == "report" else "pictures": len(sources)}
    if write_prompts:
        normal = normal_item(facts)
        prompts = ({"id": s.id, "messages": rewrite.make_prompt(s.text, kind, normal)} for s in sources if s.text)
        summary["prompts"] = write_jsonl(write_prompts, prompts)
    if output:
        answers: dict[str, list[str]] = {}
        if read_answers:
            with open(read_answers, encoding="utf-8") as file:
                answers, bad = rewrite.read_answers(file, {s.id: s.text for s in sources}, kind, facts)
            rejected = rejected or f"{str(output).removesuffix('.jsonl')}.rejected.jsonl"
            write_jsonl(rejected, (part.as_dict() for part in bad))
            summary["answers used"] = len(answers)
            summary["rejected"] = _count(part.reason for part in bad)
        rows = list(_rows(sources, kind, facts, answers, keep_text, bool(read_answers), as_json))
        write_jsonl(output, rows)
        summary["items"] = sum(len(row["items"]) for row in rows)
        summary["removed"] = _count(part["reason"] for row in rows for part in row["removed"])
        summary["normal"] = sum(row["is_normal"] for row in rows)
        summary["empty"] = sum(not row["items"] for row in rows)
    if as_json:
        click.echo(json.dumps(summary, indent=1))
        return
    for name, value in summary.items():
        if isinstance(value, dict):
            click.echo(f"{name:<16}{sum(value.values()):>8}")
            for reason, count in value.items():
                click.echo(f"  {reason:<22}{count:>8}")
        else:
            click.echo(f"{name:<16}{value:>8}")


def _columns(sources) -> list[str]:
    """What became of the columns of the input, for people."""
    lines = [f"labels: {', '.join(sources.labels)}"] if sources.labels else []
    lines += [
        f"{column} is not taken for labels: {count} of {len(sources)} cells are no truth values"
        for column, count in sources.strange.items()
    ]
    if sources.kept:
        lines.append(f"kept as they are: {', '.join(sources.kept)}")
    if sources.left_out:
        lines.append(f"left out (texts and images): {', '.join(sources.left_out)}")
    return lines


def _rows(sources, kind, domain, answers, keep_text, with_source, quiet):
    """Lines of the output."""
    from tqdm import tqdm

    from itemized_clip_hf.data.reports.itemize import itemize_captions, itemize_report

    for source in tqdm(sources, desc="itemize", unit="report", disable=quiet or len(sources) < 500):
        found = itemize_captions(source.text) if kind == "captions" else itemize_report(source.text, domain)
        items, spans, is_normal = found.items, found.spans, found.is_normal
        if source.id in answers:
            items = answers[source.id]
            spans = [None] * len(items)
            is_normal = is_normal and items == found.items
        removed = found.as_dict()["removed"]
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
        if with_source:
            row["items_from"] = "answer" if source.id in answers else "rules"
        if keep_text:
            row["text"] = source.text
        yield row


def _count(values) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(values).most_common())
