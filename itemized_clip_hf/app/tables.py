"""Tables of the page as HTML; whatever a file, header or person brought along is escaped."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..data.checks import Report
from ..evaluation.quantity import MEANINGS
from ..explain.result import StudyResult
from .studies import OpenedStudy, Verdict

NOTICE = "Research only: not a medical device. Scores are not calibrated."
_WORDS = {"ok": "can be used", "warn": "can be used, with warnings", "refuse": "cannot be used"}


def message(text: str, kind: str = "error") -> str:
    """A line for people: `error`, `note` or `done`."""
    return f'<p class="ic-message ic-{kind}" role="status">{escape(text)}</p>' if text else ""


def verdict_table(opened: OpenedStudy, verdict: Verdict) -> str:
    """Every scan with its verdict, what was found and what to do."""
    count = 1 if opened.is_picture else len(verdict.usable)
    scans = "a picture" if opened.is_picture else f"{count} scan{'' if count == 1 else 's'} to use"
    head = (
        f'<p class="ic-study"><b>{escape(opened.name)}</b> {_badge(verdict.level)} '
        f"<span>{scans}{f', {len(verdict.refused)} left out' if verdict.refused else ''}</span></p>"
    )
    rows = "".join(_verdict_row(report) for report in verdict.reports)
    columns = "<thead><tr><th>scan</th><th>verdict</th><th>found</th></tr></thead>"
    return f'{head}<table class="ic-table">{columns}<tbody>{rows}</tbody></table>'


def _verdict_row(report: Report) -> str:
    shape = " × ".join(map(str, report.facts.get("shape", [])))
    spacing = " × ".join(f"{step:.3g}" for step in report.facts.get("spacing_mm", []))
    facts = " · ".join(filter(None, [shape, spacing and f"{spacing} mm", str(report.facts.get("orientation", ""))]))
    found = "".join(
        f'<li class="ic-{problem.level}"><b>{escape(problem.code)}</b> {escape(problem.found)}: {escape(problem.advice)}</li>'
        for problem in sorted(report.problems, key=lambda one: one.level == "note")
    )
    name = escape(report.scan or ("picture" if report.facts else "the study"))
    listed = f'<ul class="ic-problems">{found}</ul>' if found else ""
    return f"<tr><td>{name}</td><td>{_badge(report.verdict)}</td><td>{escape(facts)}{listed}</td></tr>"


def _badge(level: str) -> str:
    return f'<span class="ic-badge ic-{level}" title="{_WORDS[level]}">{level}</span>'


def result_table(results: Mapping[str, StudyResult]) -> str:
    """
    Findings and scores, best first; with the prior study's scores and the differences where there is one.

    The number of a finding stands in its row (`data-finding`), for the viewers to go to it.
    """
    current, prior = results["current"], results.get("prior")
    columns = ["finding", current.quantity, *(["prior", "difference"] if prior else []), "strongest in"]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    order = sorted(range(len(current.findings)), key=lambda number: -current.findings[number].score)
    rows = "".join(_result_row(number, current, prior, number == order[0]) for number in order)
    notes = "".join(
        f"<li>{escape(f'{name} study: {note}' if prior else note)}</li>"
        for name, one in results.items()
        for note in one.notes
    )
    return (
        f'<table class="ic-table ic-scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        f'<p class="ic-small">{escape(current.quantity)}: {escape(MEANINGS[current.quantity])}; not calibrated.</p>'
        + (f'<ul class="ic-problems">{notes}</ul>' if notes else "")
    )


def _result_row(number: int, current: StudyResult, prior: StudyResult | None, chosen: bool) -> str:
    finding, scores = current.findings[number], [one.score for one in current.findings]
    low, high = min(scores), max(scores)
    part = (finding.score - low) / (high - low) if high > low else 0.0
    cells = [escape(finding.label), f'{finding.score:.3f}<i style="width:{part:.0%}"></i>']
    if prior:
        before = prior.findings[number].score
        change = finding.score - before
        sign = "up" if change > 0 else "down" if change < 0 else "same"
        cells += [f"{before:.3f}", f'<span class="ic-{sign}">{change:+.3f}</span>']
    most = finding.strongest_scan
    strongest = f"{escape(current.scan_names[most])} ({finding.shares[most]:.0%})"
    cells.append(strongest if finding.shares[most] > 0 else "nowhere")
    shown = "".join(f"<td{' class=ic-score' if n == 1 else ''}>{cell}</td>" for n, cell in enumerate(cells))
    title = escape("; ".join(finding.prompts))
    return (
        f'<tr data-finding="{number}" tabindex="0" aria-selected="{str(chosen).lower()}" title="{title}">{shown}</tr>'
    )


def text_table(ranked: Sequence[tuple[str, float]], where: str) -> str:
    """The texts that describe a place best."""
    rows = "".join(f"<tr><td>{escape(text)}</td><td>{score:.3f}</td></tr>" for text, score in ranked)
    return (
        f'<p class="ic-small">{escape(where)}</p><table class="ic-table">'
        f"<thead><tr><th>text</th><th>similarity</th></tr></thead><tbody>{rows}</tbody></table>"
        '<p class="ic-small">Similarity of each text to the patch that the place lies in; not calibrated.</p>'
    )


def place_words(result: StudyResult, place: Mapping[str, Any]) -> str:
    """Where a place lies, for people."""
    name = result.scan_names[int(place["scan"])]
    if "mm" in place:
        return f"{name} at {', '.join(f'{float(value):.1f}' for value in place['mm'])} mm (RAS)"
    return f"{name} at row {float(place['row']):.0%}, column {float(place['column']):.0%}"


def file_links(offered: Mapping[str, str], what: str = "") -> str:
    """Links to files, which the browser stores."""
    links = " ".join(f'<a href="{escape(url)}" download>{escape(name)}</a>' for name, url in offered.items())
    return f'<p class="ic-files">{escape(what)} {links}</p>' if offered else ""


def viewer_frame(url: str | None, title: str) -> str:
    """The report in a frame that can run its own scripts and reach nothing else."""
    if url is None:
        return ""
    return f'<iframe class="ic-viewer" sandbox="allow-scripts" src="{escape(url)}#embedded" title="{escape(title)}"></iframe>'
