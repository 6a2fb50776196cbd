"""What `prepare` tells of its result: counts, and a page with slices of the first studies and what was left out."""

import html
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...files import write_text
from ...study import Skipped

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
td, th { text-align: left; padding: 0.15rem 1rem 0.15rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
figure { display: inline-block; width: 118px; margin: 0 8px 8px 0; font-size: 11px; overflow-wrap: anywhere;
  vertical-align: top; }
img { width: 112px; background: #000; display: block; }
"""


def summarize(domain: str, kept: list[dict], skipped: list[Skipped]) -> dict:
    """Counts of what was kept and what was not, without anything of a single study."""
    ids = {facts["id"] for facts in kept}
    series = Counter(name for facts in kept for name in facts.get("scans", ()))
    items = sorted(facts["items"] for facts in kept)
    return {
        "domain": domain,
        "studies": len(kept),
        "studies_left_out": len({entry.study for entry in skipped} - ids),
        "files_left_out": sum(1 for entry in skipped if entry.scan),
        "normal": sum(facts["is_normal"] for facts in kept),
        "scans": sum(series.values()),
        "items": sum(items),
        "items_per_study": {"min": items[0], "median": items[len(items) // 2], "max": items[-1]},
        "series": dict(series.most_common(30)),
        "warnings": dict(Counter(code for facts in kept for code in facts["warnings"]).most_common()),
    }


def write_page(path: Path, summary: dict, kept: list[dict], skipped: list[Skipped]) -> None:
    """One HTML file without scripts or links; ids of studies are all that it tells of a patient."""
    counts = [
        ("studies", summary["studies"]),
        ("of them normal", summary["normal"]),
        ("studies left out", summary["studies_left_out"]),
        ("files and scans left out of kept studies and others", summary["files_left_out"]),
        ("prepared scans", summary["scans"]),
        ("items", f"{summary['items']} ({_spread(summary['items_per_study'])} a study)"),
    ]
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{facts["thumbnail"]}" alt="">{html.escape(facts["id"])}<br>'
        f"{html.escape(', '.join(facts.get('scans', ())))}</figure>"
        for facts in kept
        if facts.get("thumbnail")
    )
    rows = [(entry.study, entry.scan or "", entry.reason) for entry in skipped[:500]]
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Prepared dataset: {html.escape(summary["domain"])}</title>
<style>{_STYLE}</style>
<h1>Prepared dataset: {html.escape(summary["domain"])}</h1>
{_table(counts)}
<h2>Series</h2>
{_table(summary["series"].items(), ("name", "scans"))}
<h2>Warnings</h2>
{_table(summary["warnings"].items(), ("code", "scans")) if summary["warnings"] else "<p>None.</p>"}
<h2>Middle slice of the first scan of the first studies</h2>
<p>{figures}</p>
<h2>Left out ({len(skipped)})</h2>
{_table(rows, ("study", "file or scan", "reason")) if rows else "<p>Nothing.</p>"}
{"<p>The rest is in quarantine.csv.</p>" if len(skipped) > 500 else ""}
</html>
"""
    write_text(path, page)


def _spread(values: dict) -> str:
    return f"{values['min']} to {values['max']}, median {values['median']}"


def _table(rows: Iterable[Any], header: tuple[str, ...] = ()) -> str:
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"
