"""
The text tower, plain against fast: all item slots at the full context, against real items only, grouped by length.

    python benchmarks/text.py [--data ../shared/data] [--scale 0.5] [-o benchmarks/results/text.json]

Forward and backward, interleaved, medians. Items are real ones where the data is at hand: RSICD captions in 6 slots (CLIP,
context 100), findings of chest CT reports in 10 slots and brain MRI-like lists of 1 to 7 of them in 7 (BERT, context 256).
Cases
measured before on the same machine stay in the output.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch


def rsicd(data: Path, studies: int) -> list[list[str]]:
    import pyarrow.parquet as parquet

    rows = parquet.read_table(data / "rsicd" / "val.parquet", columns=["captions_unique"]).slice(0, studies)
    return [row["captions_unique"][:6] for row in rows.to_pylist()]


def chest(data: Path, studies: int) -> list[list[str]]:
    from itemized_clip_hf.data.reports.itemize import itemize_report

    with gzip.open(data / "reports" / "chest_ct_reports.jsonl.gz", "rt") as lines:
        reports = [json.loads(next(lines))["report"] for _ in range(studies)]
    return [itemize_report(report, "chest-ct").items[:10] for report in reports]


def brain(data: Path, studies: int) -> list[list[str]]:
    counts = [1, 2, 3, 3, 4, 4, 5, 2]  # 3 items a study on average, as in the released runs
    return [items[: counts[i % len(counts)]] for i, items in enumerate(chest(data, studies))]


CASES = {
    "remote-sensing (CLIP)": ("remote-sensing", rsicd, 64, 6, 100),
    "chest-ct (BERT)": ("chest-ct", chest, 16, 10, 256),
    "brain-mri (BERT)": ("brain-mri", brain, 8, 7, 256),
}


def measure(case: str, data: Path, scale: float, repeats: int, device: str) -> dict:
    from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.domains import load_domain
    from itemized_clip_hf.models.tokenizer import load_tokenizer

    domain, source, studies, slots, context = CASES[case]
    architecture = json.loads(json.dumps(load_domain(domain).architecture))
    text = architecture["text_config"]
    text["num_hidden_layers"] = max(round(text["num_hidden_layers"] * scale), 1)
    architecture["vision_config"]["num_hidden_layers"] = 1
    architecture["vision_config"].pop("attention_scopes", None)
    architecture["vision_config"]["attention_scopes"] = ["scan"]
    vocabulary = {"remote-sensing": "bpe_simple_vocab_16e6.txt.gz"}.get(domain, "bert_base_uncased_vocab.txt")
    tokenizer = load_tokenizer(str(data / "tokenizers" / vocabulary), context)
    processor = ItemizedCLIPProcessor.from_domain(domain, tokenizer=tokenizer)
    items = source(data, studies)
    encoded = processor.encode_text(items, num_slots=slots, padding="max_length", max_length=context)
    inputs = {name: torch.as_tensor(value).to(device) for name, value in encoded.items()}
    torch.manual_seed(0)
    model = ItemizedCLIPModel(ItemizedCLIPConfig(domain=domain, **architecture)).to(device).eval()
    goal = torch.randn(studies, slots, model.config.projection_dim, device=device)
    real = inputs["item_mask"].bool()

    def run(fast: bool):
        if fast:
            embeds, _ = model.encode_items(inputs["input_ids"], inputs["attention_mask"], real)
        else:
            embeds = model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        (embeds[real] * goal[real]).sum().backward()
        gradient = model.text_projection.weight.grad.clone()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return embeds[real].detach(), gradient

    times: dict = {"plain": [], "fast": []}
    found = {}
    for repeat in range(repeats + 1):
        for name in times:
            start = time.perf_counter()
            found[name] = run(name == "fast")
            if repeat:
                times[name].append(time.perf_counter() - start)
    largest = (found["plain"][0] - found["fast"][0]).abs().max() / found["plain"][0].abs().max()
    return {
        "case": case,
        "studies": studies,
        "slots": slots,
        "items_per_study": round(float(real.sum() / studies), 2),
        "tokens_per_item": round(float(inputs["attention_mask"][real].sum() / real.sum()), 1),
        **{f"{name}_s": round(statistics.median(values), 4) for name, values in times.items()},
        "time_ratio": round(statistics.median(p / f for p, f in zip(*times.values())), 2),
        "difference": float(largest),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--scale", type=float, default=0.5, help="share of the text tower's layers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "text.json"))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = {"device": device, "cores": os.cpu_count(), "processor": platform.machine(), "torch": version("torch")}
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(output.read_text()) if output.exists() else {}
    rows = kept["rows"] if (kept.get("machine"), kept.get("scale")) == (machine, args.scale) else []
    for case in args.cases:
        row = measure(case, Path(args.data), args.scale, args.repeats, device)
        print(json.dumps(row), flush=True)
        rows = [old for old in rows if old["case"] != case] + [row]
        output.write_text(json.dumps({"machine": machine, "scale": args.scale, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
