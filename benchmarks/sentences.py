"""How well rules tell sentences with a finding from those without: 340 sentences of real reports, labelled by reading them.

    python benchmarks/sentences.py --data ../shared/data/reports [--errors] [-o benchmarks/results/sentences.json]

`tests/data/reports/sentence_labels.csv` holds labels and hashes only; the sentences are found in the reports by their hash.
Most were drawn among sentences with a denial, a comparison or an exclusion, so the figures are lower than over all sentences.
"""

import argparse
import csv
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from itemized_clip_hf.data.reports.itemize import itemize_report

LABELS = Path(__file__).parents[1] / "tests" / "data" / "reports" / "sentence_labels.csv"
CT_REPORTS = "chest_ct_reports.jsonl.gz"
X_RAY_REPORTS = "indiana_chest_xray_reports.csv"


def sentences_of(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(file, id, sentence) of every sentence of the two files of reports."""
    with gzip.open(folder / CT_REPORTS, "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            for sentence in row["sentences"]:
                yield CT_REPORTS, row["id"], " ".join(sentence.split())
    with open(folder / X_RAY_REPORTS, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for column in ("findings", "impression"):
                for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z0-9])", row[column] or ""):
                    yield X_RAY_REPORTS, row["uid"], " ".join(sentence.split())


def labelled_sentences(folder: Path) -> dict[str, bool]:
    """Sentence -> whether it states a finding."""
    with open(LABELS, newline="", encoding="utf-8") as file:
        labels = {(row["source"], row["id"], row["sha256"]): row["finding"] == "1" for row in csv.DictReader(file)}
    known = {(source, name) for source, name, _ in labels}
    found = {}
    for source, name, sentence in sentences_of(folder):
        if (source, name) in known:
            key = (source, name, hashlib.sha256(sentence.encode()).hexdigest()[:16])
            if key in labels:
                found[key] = sentence
    if len(found) < len(labels):
        raise ValueError(
            f"{folder} holds {len(found)} of the {len(labels)} labelled sentences: expected the same reports."
        )
    return {found[key]: label for key, label in labels.items()}


def states_finding(sentence: str) -> bool:
    report = itemize_report(sentence, "chest-ct")
    return bool(report.items) and not report.is_normal


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="../shared/data/reports", help="folder with the two files of reports")
    parser.add_argument("--errors", action="store_true", help="print the sentences that are judged wrongly")
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "sentences.json"))
    arguments = parser.parse_args()
    labels = labelled_sentences(Path(arguments.data))
    judged = {sentence: states_finding(sentence) for sentence in labels}
    right = sum(judged[sentence] and label for sentence, label in labels.items())
    figures = {
        "n": len(labels),
        "with a finding": sum(labels.values()),
        "precision": round(right / sum(judged.values()), 4),
        "recall": round(right / sum(labels.values()), 4),
    }
    if arguments.errors:
        for sentence, label in labels.items():
            if judged[sentence] != label:
                print(f"{'missed' if label else 'no finding'}: {sentence}")
    print(figures)
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    Path(arguments.output).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
