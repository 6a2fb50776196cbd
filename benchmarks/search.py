"""
Search in cohorts: an approximate index against exact search, and two stages against scoring every study.

    python benchmarks/search.py faiss [--studies 100000 --width 512]
    python benchmarks/search.py texts --models runs/attribution/0 runs/attribution/1 [--studies 1000]

faiss: generated embeddings in 300 and in 5,000 clusters (directions around centers, which are drawn around 40 centers; sizes of
the clusters follow a power law), and for comparison uniform ones (0 clusters), which have no neighbors to speak of. Queries are
embeddings with noise, as of another study of a cluster. recall@10: share of the 10 most similar that the index finds.

texts: the sentences of unseen generated studies and the findings' prompts, each looked for among these studies; how many
candidates of the first stage it takes until the 10 best of the second are the 10 best of all. First stage: the global
embeddings alone, or the item embeddings of the findings' prompts (`embed --prompts`).
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from common import put_table

RESULTS = Path(__file__).parent / "results" / "search.json"
DOCS = Path(__file__).parents[1] / "docs" / "cohort.md"
MARK = "<!-- {} of benchmarks/results/search.json -->"
TOP = 10
CLUSTERS = (300, 5000, 0)
CANDIDATES = (50, 100, 200, 300, 400, 500, 600, 700, 800)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def generate(clusters: int, count: int, width: int, queries: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (S, P) and queries (Q, P) of length 1; uniform ones for 0 clusters."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, width), dtype=np.float32)
    if clusters:
        groups = rng.standard_normal((40, width), dtype=np.float32)
        offsets = rng.standard_normal((clusters, width), dtype=np.float32)
        centers = groups[rng.integers(0, 40, clusters)] + 0.7 * offsets
        shares = 1 / np.arange(1, clusters + 1) ** 0.7
        rows = centers[rng.choice(clusters, count, p=shares / shares.sum())] + 0.5 * rows
    asked = rows[rng.integers(0, count, queries)]
    asked = asked + 0.3 * asked.std() * rng.standard_normal(asked.shape, dtype=np.float32)
    return unit(rows), unit(asked)


def write_cohort(path: Path, embeddings: np.ndarray):
    """A cohort of generated embeddings."""
    import pyarrow.parquet as pq

    from itemized_clip_hf.cohort.file import Cohort, CohortFacts
    from itemized_clip_hf.cohort.rows import finish_labels, table_of

    facts = CohortFacts({"sha256": "generated"}, {"sha256": "generated"}, embeddings.shape[1])
    none = {"scans": 1, "scans_left_out": 0, "labels": None, "label": None}
    rows = [{"id": str(number), "embedding": own, **none} for number, own in enumerate(embeddings)]
    table = finish_labels(table_of(rows, facts), [], False).replace_schema_metadata(facts.metadata())
    pq.write_table(table, path)
    return Cohort(path)


def measure_index(clusters: int, count: int, width: int, queries: int = 200) -> dict:
    """Recall and times of the index that `search --index` makes."""
    from itemized_clip_hf.cohort.index import CohortIndex
    from itemized_clip_hf.cohort.search import nearest

    rows, asked = generate(clusters, count, width, queries)
    with tempfile.TemporaryDirectory() as place:
        cohort = write_cohort(Path(place) / "cohort.parquet", rows)
        assert len(cohort.directions) == count  # read before time counts
        start = time.perf_counter()
        index = CohortIndex(cohort, Path(place) / "cohort.faiss")
        built = time.perf_counter() - start
        size = (Path(place) / "cohort.faiss").stat().st_size
        times: dict[str, list[float]] = {"exact": [], "index": []}
        hits = []
        for query in asked:
            start = time.perf_counter()
            exact = nearest(cohort.directions, query, TOP)[1]
            times["exact"].append(time.perf_counter() - start)
            start = time.perf_counter()
            found = index.search(query[None], TOP)[1][0]
            times["index"].append(time.perf_counter() - start)
            hits.append(len(set(exact.tolist()) & set(found.tolist())) / TOP)
    milliseconds = {name: float(1000 * np.median(own)) for name, own in times.items()}
    return {
        "clusters": clusters,
        "studies": count,
        "width": width,
        "queries": queries,
        "factory": index.factory,
        "recall_at_10": round(float(np.mean(hits)), 4),
        "milliseconds": {name: round(value, 3) for name, value in milliseconds.items()},
        "speed_ratio": round(milliseconds["exact"] / milliseconds["index"], 1),
        "build_seconds": round(built, 1),
        "index_mb": round(size / 1e6),
    }


def measure_texts(folder: Path, count: int, seed: int) -> dict:
    """Candidates that it takes until two stages give the 10 studies that scoring all of them gives, over all texts."""
    from itemized_clip_hf.cohort.embed import EmbedOptions, embed_cohort
    from itemized_clip_hf.cohort.file import Cohort
    from itemized_clip_hf.models.load import load
    from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS, PhantomDataset
    from itemized_clip_hf.phantom.experiment import as_scans

    model, processor = load(folder, "cpu")
    studies = list(PhantomDataset("test", count, seed=seed, shape=model.config.vision.image_shape))
    texts = [*sorted({item for study in studies for item in study.items}), *ZERO_SHOT_PROMPTS.values()]
    records = [{"id": study.id, "images": as_scans(study)} for study in studies]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "cohort.parquet"
        embed_cohort(model, processor, records, path, EmbedOptions(ZERO_SHOT_PROMPTS, tokens=True, batch_size=16))
        cohort = Cohort(path)
        needed = needed_candidates(cohort, model, processor, texts)
        agree = check_search(cohort, model, processor, texts, needed["item embeddings"])
    stages = {}
    for name, own in needed.items():
        equal = {str(k): round(100 * float((own <= k).mean()), 1) for k in CANDIDATES if k <= count}
        stages[name] = {
            "percent_equal": equal,
            "candidates_for_95_percent": int(np.quantile(own, 0.95, method="higher")),
        }
    frequency = np.mean([list(study.labels.values()) for study in studies])
    facts = {
        "studies": count,
        "texts": len(texts),
        "seed": seed,
        "percent_with_a_finding": round(100 * float(frequency), 1),
    }
    return {**facts, "first_stage": stages, "search_text_agrees": agree}


def needed_candidates(cohort, model, processor, texts: list[str]) -> dict[str, np.ndarray]:
    """First stage -> of each text the place of the last of its 10 best studies among the candidates."""
    import torch

    from itemized_clip_hf.cohort.search import score_places
    from itemized_clip_hf.evaluation.encode import encode_texts

    embeds = encode_texts(model, processor, texts)
    with torch.no_grad():
        scored = dict(score_places(cohort, model, embeds, range(len(cohort))))
    scores = np.stack([scored[place] for place in range(len(cohort))])
    pooled = np.stack([unit(cohort.item_embeddings(label)) for label in cohort.facts.prompts])
    needed: dict[str, list[int]] = {"global embedding": [], "item embeddings": []}
    for number, direction in enumerate(unit(embeds.numpy())):
        top = np.argsort(-scores[:, number], kind="stable")[:TOP]
        firsts = {"global embedding": cohort.directions @ direction, "item embeddings": (pooled @ direction).max(0)}
        for name, first in firsts.items():
            ranks = np.argsort(np.argsort(-first, kind="stable"), kind="stable")
            needed[name].append(int(ranks[top].max()) + 1)
    return {name: np.array(own) for name, own in needed.items()}


def check_search(cohort, model, processor, texts: list[str], needed: np.ndarray, checked: int = 12) -> bool:
    """Whether `search_text` gives the 10 best of all with as many candidates as were found to be needed."""
    from itemized_clip_hf.cohort.search import search_text

    for text, count in list(zip(texts, needed))[:: max(len(texts) // checked, 1)]:
        exhaustive = search_text(cohort, model, processor, text, TOP, None)
        staged = search_text(cohort, model, processor, text, TOP, int(count))
        if [hit.id for hit in exhaustive.hits] != [hit.id for hit in staged.hits]:
            return False
    return True


def environment() -> dict:
    packages = ("torch", "numpy", "datasets", "pyarrow")
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "versions": {name: version(name) for name in packages},
    }


def index_rows(document: dict) -> list[str]:
    """The table of the index in the documentation."""
    rows = ["| embeddings | recall@10 | exact | index | built in |", "|---|---|---|---|---|"]
    for row in document["faiss"]["rows"]:
        name = f"{row['clusters']:,} clusters" if row["clusters"] else "uniform"
        times = row["milliseconds"]
        cells = [f"{row['recall_at_10']:.3f}", f"{times['exact']:.1f} ms"]
        cells += [f"{times['index']:.2f} ms, {row['speed_ratio']:.0f} times faster", f"{row['build_seconds']:.0f} s"]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def text_rows(document: dict) -> list[str]:
    """The table of the two stages in the documentation."""
    shown = [str(k) for k in CANDIDATES if k in (100, 200, 300, 400, 500)]
    rows = [f"| model | first stage | {' | '.join(shown)} | for 95 % |", f"|---|---|{'---|' * len(shown)}---|"]
    for name, own in document["texts"].items():
        for stage, figures in own["first_stage"].items():
            cells = [f"{figures['percent_equal'][k]:.1f} %" for k in shown]
            rows.append(f"| {name} | {stage} | {' | '.join(cells)} | {figures['candidates_for_95_percent']} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["faiss", "texts", "tables"])
    parser.add_argument("--models", type=Path, nargs="+", default=[], help="Folders of the demo.")
    parser.add_argument("--studies", type=int)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=3, help="Of the studies of the first model.")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    document = json.loads(args.output.read_text()) if args.output.exists() else {}
    if args.part == "faiss":
        rows = [measure_index(clusters, args.studies or 100_000, args.width) for clusters in CLUSTERS]
        document["faiss"] = {"faiss": version("faiss-cpu"), **environment(), "rows": rows}
    if args.part == "texts":
        document["texts"] = {}
        for number, folder in enumerate(args.models):
            found = measure_texts(folder / "model", args.studies or 1000, args.seed + number)
            document["texts"][f"demo {number}"] = {**environment(), **found}
    args.output.write_text(json.dumps(document, indent=1) + "\n")
    if args.output == RESULTS and {"faiss", "texts"} <= set(document):
        put_table(DOCS, MARK.format("index"), index_rows(document))
        put_table(DOCS, MARK.format("texts"), text_rows(document))


if __name__ == "__main__":
    main()
