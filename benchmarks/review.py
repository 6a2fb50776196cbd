"""
A second look at reports of generated studies, with planted omissions and additions: are they what is asked about?

    itemized-clip demo -o runs/demo; python benchmarks/review.py --model runs/demo/model [-o benchmarks/results/review.json]

In a share of the studies one item is taken out of the report ("the report misses this"); in others an item about a finding that
the study does not have, of another study, is put in ("this item is not in the images"). The reports that are compared, and the
thresholds that come of them, hold these errors, as those of a hospital do. Unseen studies; intervals are over studies.
"""

import argparse
import json
import os
import platform
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results" / "review.json"
DOCS = Path(__file__).parents[1] / "docs" / "review.md"
MARK = "<!-- table of benchmarks/results/review.json -->"
NORMAL = "no significant abnormalities."
LEVELS = {"high": (25, 50, 75), "low": (2, 5, 10)}


def read_cohort(path: str | None, count: int, seed: int, shape: tuple[int, int, int]) -> list[dict]:
    """`id`, `open`, `items`, `findings` (of each item) and `labels` of generated studies; of a list that the phantom wrote."""
    from itemized_clip_hf.data.readers.read import read_study
    from itemized_clip_hf.phantom import PhantomDataset
    from itemized_clip_hf.phantom.experiment import as_scans

    if path is None:
        dataset = PhantomDataset("test", count, seed=seed, shape=shape)
        facts = [(one, one.id, one.items, one.item_findings, one.labels) for one in dataset]
        keys = ("open", "id", "items", "findings", "labels")
        return [dict(zip(keys, (partial(as_scans, one), *rest))) for one, *rest in facts]
    folder, rows = Path(path).parent, [json.loads(line) for line in Path(path).read_text().splitlines()[:count]]
    places = [{name: str(folder / file) for name, file in row["images"].items()} for row in rows]
    return [{**row, "open": partial(read_study, place, row["id"])} for row, place in zip(rows, places)]


def plant(cohort: list[dict], names: list[str], share: float, seed: int) -> tuple[list[list[str]], np.ndarray, list]:
    """
    Reports with errors.

    Returns:
        items of each study; (S, M), True where an item about a finding was taken out; of each item whether it was put in.
    """
    generator = np.random.default_rng(seed)
    omitted = np.zeros((len(cohort), len(names)), bool)
    known = [(text, name) for study in cohort for text, name in zip(study["items"], study["findings"]) if name in names]
    reports, added = [], []
    for number, study in enumerate(cohort):
        items, drawn = list(study["items"]), generator.random()
        own_added = [False] * len(items)
        if any(study["labels"].values()) and drawn < share:
            place = int(generator.integers(len(items)))
            omitted[number, names.index(study["findings"][place])] = True
            del items[place], own_added[place]
            items, own_added = (items, own_added) if items else ([NORMAL], [False])
        elif drawn > 1 - share:
            absent = [text for text, name in known if not study["labels"][name]]
            items.append(absent[int(generator.integers(len(absent)))])
            own_added.append(True)
        reports.append(items)
        added.append(own_added)
    return reports, omitted, added


def figures(truth: np.ndarray, scores: np.ndarray, studies: np.ndarray, count: int, resamples: int = 1000) -> dict:
    """AUC of scores (N,) with its interval; `studies` (N,): numbers of the studies that they are of."""
    from itemized_clip_hf.evaluation import bootstrap as boot
    from itemized_clip_hf.evaluation.metrics import auroc

    counts = boot.draw_counts(count, resamples)[:, studies]
    return boot.estimate(auroc(truth, scores), boot.resampled_auroc(truth, scores, counts), "auc", count).to_dict()


def rates(truth: np.ndarray, asked: np.ndarray, studies: np.ndarray, count: int, resamples: int = 1000) -> dict:
    """Precision and recall of what is asked about, and the number of questions."""
    from itemized_clip_hf.evaluation import bootstrap as boot

    counts = boot.draw_counts(count, resamples)[:, studies]
    rows = {"precision": np.where(asked, truth, np.nan), "recall": np.where(truth, asked, np.nan)}
    estimates = {
        name: boot.estimate(float(np.nanmean(values)), boot.resampled_mean(values, counts), name, count).to_dict()
        for name, values in rows.items()
    }
    return {"questions": int(asked.sum()), "planted": int(truth.sum()), **estimates}


def measure(cohort: list[dict], model, processor, share: float, seed: int) -> dict:
    """Figures of a cohort with planted errors."""
    from itemized_clip_hf.evaluation.encode import Closed
    from itemized_clip_hf.evaluation.score_file import ScoreFile
    from itemized_clip_hf.explain.review import MISSING, UNSUPPORTED, embed_reports, score_reports
    from itemized_clip_hf.phantom.reports import ZERO_SHOT_PROMPTS

    names, ids = list(ZERO_SHOT_PROMPTS), [study["id"] for study in cohort]
    prompts = {name: [text] for name, text in ZERO_SHOT_PROMPTS.items()}
    items, omitted, added = plant(cohort, names, share, seed)
    reports, *embeds = embed_reports(model, processor, ids, items, prompts)
    studies = [Closed(study["open"]) for study in cohort]
    score_reports(model, processor, reports, (embeds[0], embeds[1]), studies, ids, ScoreFile(None, {}), batch_size=32)
    labels = np.array([[study["labels"][name] for name in names] for study in cohort])
    told = (labels & ~omitted) | put_in(items, added, cohort, names)
    strength = np.full(labels.shape, -1.0)
    for column in range(len(names)):
        compared = np.sort(reports.scores[reports.mentions[:, column], column])
        strength[:, column] = np.searchsorted(compared, reports.scores[:, column]) / len(compared)
    strength[reports.mentions] = -1
    cells, of_items = np.repeat(np.arange(len(ids)), len(names)), np.repeat(np.arange(len(ids)), list(map(len, items)))
    item_scores, is_added = np.concatenate(reports.item_scores), np.concatenate(added).astype(bool)
    alone, count = np.arange(len(ids)), len(ids)
    by_prompt = {name: figures(labels[:, k], reports.scores[:, k], alone, count) for k, name in enumerate(names)}
    silent = ~reports.mentions
    return {
        "auc_of_prompts": by_prompt,
        "mentions_wrong": float((reports.mentions != told).mean()),
        "the report misses this, auc": figures(omitted.ravel(), strength.ravel(), cells, count),
        "the report misses this, auc among findings without a mention": figures(
            omitted[silent], strength[silent], cells[silent.ravel()], count
        ),
        "this item is not in the images, auc": figures(is_added, -item_scores, of_items, count),
        "asked": {
            **ask(reports, MISSING, "high", [(name, f) for name in ids for f in names], omitted.ravel(), cells),
            **ask(reports, UNSUPPORTED, "low", [(n, t) for n, own in zip(ids, items) for t in own], is_added, of_items),
        },
    }


def ask(reports, kind: str, option: str, texts: list, truth: np.ndarray, studies: np.ndarray) -> dict:
    """Precision and recall of one kind of question by the percentile that is asked for."""
    from itemized_clip_hf.explain.review import find_questions

    found = {}
    for level in LEVELS[option]:
        questions = {(q.study, q.text) for q in find_questions(reports, **{option: level}).questions if q.kind == kind}
        asked = np.array([one in questions for one in texts])
        found[f"{kind}, --{option} {level}"] = rates(truth, asked, studies, len(reports.ids))
    return found


def put_in(items: list[list[str]], added: list, cohort: list[dict], names: list[str]) -> np.ndarray:
    """(S, M), True where an item about a finding was put into a report."""
    finding_of = {text: name for study in cohort for text, name in zip(study["items"], study["findings"])}
    table = np.zeros((len(items), len(names)), bool)
    for number, (own, flags) in enumerate(zip(items, added)):
        for text, flag in zip(own, flags):
            if flag:
                table[number, names.index(finding_of[text])] = True
    return table


def table_rows(document: dict) -> list[str]:
    """Of the documentation, in percent."""

    def show(figure: dict) -> str:
        return f"{100 * figure['value']:.1f} ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"

    rows = ["| | planted | questions | precision | recall | AUC |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, figure in document.items():
        if name.endswith(", auc"):
            rows.append(f"| {name.removesuffix(', auc')} | | | | | {show(figure)} |")
    for name, row in document["asked"].items():
        counts = f"{row['planted']} | {row['questions']}"
        rows.append(f"| {name} | {counts} | {show(row['precision'])} | {show(row['recall'])} | |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the demo's model")
    parser.add_argument("--list", help="studies.jsonl of generated studies; they are generated without it")
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the studies and of what is planted")
    parser.add_argument(
        "--share", type=float, default=0.25, help="of studies with an omission, and of those with an addition"
    )
    parser.add_argument("-o", "--output", default=str(RESULTS))
    args = parser.parse_args()
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.provenance import hash_model

    model, processor = load(args.model, "cpu")
    size = processor.image_processor.scan_size
    cohort = read_cohort(args.list, args.studies, args.seed, tuple(size))
    document = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")},
        "model_sha256": hash_model(model),
        "scan_size": list(size),
        "studies": len(cohort),
        "share": args.share,
        "seed": args.seed,
        **measure(cohort, model, processor, args.share, args.seed),
    }
    print("\n".join(table_rows(document)))
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    Path(args.output).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
