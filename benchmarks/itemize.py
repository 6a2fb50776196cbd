"""How well rules turn reports into items: 1,000 chest CT reports with 18 manual labels, and 3,851 chest X-ray reports.

    python benchmarks/itemize.py --data ../shared/data/reports [-o benchmarks/results/itemize.json]

A report names a label's finding where one of its texts holds words of `itemize_keywords.yaml`. Two figures, averaged over the
labels: of the reports that have the finding, the share whose items name it (should be high), and the same of those that do not
(should be low). Plain sentences of the same reports, with the same words, give the scale. The rules were made with the `train`
reports in view; `val` reports are for the figures alone.
"""

import argparse
import csv
import json
import re
import time
from pathlib import Path

import yaml

from itemized_clip_hf.data.reports.itemize import ItemizedReport, itemize_report
from itemized_clip_hf.data.reports.sentences import split_sentences
from itemized_clip_hf.data.reports.sources import read_sources

KEYWORDS = Path(__file__).parent / "itemize_keywords.yaml"


def load_keywords(path: str | Path = KEYWORDS) -> dict[str, list[list[re.Pattern]]]:
    """Label -> alternatives, each a list of patterns that all have to be found in one text."""
    table = yaml.safe_load(Path(path).read_text())
    return {
        label: [[re.compile(part, re.IGNORECASE) for part in entry.split(" & ")] for entry in entries]
        for label, entries in table.items()
    }


def names(text: str, alternatives: list[list[re.Pattern]]) -> bool:
    return any(all(part.search(text) for part in parts) for parts in alternatives)


def label_figures(texts: list[list[str]], labels: list[dict[str, int]], keywords) -> dict[str, dict[str, float]]:
    """Label -> number of reports with it, share of them that name it, share of the others that name it; and the averages."""
    figures: dict[str, dict[str, float]] = {}
    for label, alternatives in keywords.items():
        named = [any(names(text, alternatives) for text in report) for report in texts]
        having = [name for name, row in zip(named, labels) if row[label]]
        lacking = [name for name, row in zip(named, labels) if not row[label]]
        figures[label] = {
            "reports": len(having),
            "named where present": sum(having) / len(having),
            "named where absent": sum(lacking) / len(lacking),
        }
    measures = ("named where present", "named where absent")
    average = {name: sum(row[name] for row in figures.values()) / len(figures) for name in measures}
    return {**figures, "average": {"reports": len(texts), **average}}


def chest_ct(folder: Path, split: str | None = None) -> dict[str, dict]:
    """Figures of plain sentences and of items on the labelled chest CT reports of one split."""
    sources = read_sources(folder / "chest_ct_reports.jsonl.gz")
    sources = [source for source in sources if split in (None, source.others["split"])]
    labels = [source.others["labels"] for source in sources]
    keywords = load_keywords()
    start = time.perf_counter()
    itemized = [itemize_report(source.text, "chest-ct") for source in sources]
    seconds = time.perf_counter() - start
    plain = [[sentence.text for sentence in split_sentences(source.text)] for source in sources]
    return {
        "plain sentences": label_figures(plain, labels, keywords),
        "items": label_figures([report.items for report in itemized], labels, keywords),
        "counts": {
            "sentences": sum(map(len, plain)),
            "items": sum(len(report.items) for report in itemized),
            "removed": len([part for report in itemized for part in report.removed]),
            "normal": sum(report.is_normal for report in itemized),
            "seconds": round(seconds, 1),
        },
    }


def chest_x_ray(folder: Path) -> tuple[dict[str, float], dict[str, list[tuple[str, ItemizedReport]]]]:
    """Shares of the normal and of the abnormal chest X-ray reports that are taken for normal, and the reports taken wrongly."""
    with open(folder / "indiana_chest_xray_reports.csv", newline="", encoding="utf-8") as file:
        problems = {row["uid"]: row["Problems"] for row in csv.DictReader(file)}
    groups: dict[str, list[tuple[str, ItemizedReport]]] = {"normal": [], "abnormal": []}
    for source in read_sources(folder / "indiana_chest_xray_reports.csv"):
        if source.text and problems[source.id] != "No Indexing":
            group = "normal" if problems[source.id] == "normal" else "abnormal"
            groups[group].append((source.text, itemize_report(source.text, "chest-ct")))
    figures: dict[str, float] = {}
    wrong = {}
    for name, reports in groups.items():
        figures[f"{name} reports"] = len(reports)
        figures[f"{name} called normal"] = sum(report.is_normal for _, report in reports) / len(reports)
        wrong[name] = [(text, report) for text, report in reports if report.is_normal != (name == "normal")]
    return figures, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with the two files of reports")
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "itemize.json"))
    parser.add_argument("--split", action="append", choices=["train", "val"], help="both unless given")
    arguments = parser.parse_args()
    folder = Path(arguments.data)
    results: dict = {}
    for split in arguments.split or ["train", "val"]:
        results[split] = figures = chest_ct(folder, split)
        print(f"chest CT, {split}{'':<24}         plain sentences           items")
        for label, row in figures["items"].items():
            cells = [figures[kind][label] for kind in ("plain sentences", "items")]
            shares = "   ".join(
                f"{100 * c['named where present']:6.1f} {100 * c['named where absent']:6.1f}" for c in cells
            )
            print(f"  {label:<38}{row['reports']:>5}   {shares}")
        print(f"  {figures['counts']}")
    results["chest x-ray"], _ = chest_x_ray(folder)
    print(f"chest X-ray: {results['chest x-ray']}")
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(json.dumps(_rounded(results), indent=1) + "\n")


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
