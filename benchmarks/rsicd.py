"""Zero-shot test protocol of RSICD on a model folder or on every checkpoint of a run: top-1, top-5, mean rank.

    python benchmarks/rsicd.py runs/rsicd --data ../shared/data/rsicd [--curve]

The 30 classes, two templates averaged; images of `playfields`, which has no class in the protocol, are left out, and counted as
`playground` in a second line. `--curve` also measures the run's checkpoints and draws the learning curve.
"""

import argparse
import json
from pathlib import Path

from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
from itemized_clip_hf.evaluation.protocol import load_protocol
from itemized_clip_hf.hub.load import load

LINES = {"30 classes": None, "playfields as playground": "playfields-as-playground"}


def test_protocol(folder: str | Path, data: Path) -> dict:
    """Figures of one model on the 30 classes, without and with `playfields`, with 95 % intervals over images."""
    model, processor = load(folder)
    results = {}
    for line, variant in LINES.items():
        found = evaluate_protocol(model, processor, load_protocol("rsicd", variant), data, batch_size=64).results
        table = found["tables"][""]
        figures = {name: round(figure["value"], 6) for name, figure in table["mean"].items()}
        intervals = {
            name: [round(figure["low"], 4), round(figure["high"], 4)] for name, figure in table["mean"].items()
        }
        results[line] = {"images": table["studies"], **figures, "intervals": intervals}
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="folder with test.parquet")
    parser.add_argument("--split", default="test", choices=["test", "val"])
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("-o", "--output")
    arguments = parser.parse_args()
    data = Path(arguments.data) / f"{arguments.split}.parquet"
    results = {"final": test_protocol(arguments.model, data)}
    if arguments.curve:
        folders = Path(arguments.model).glob("checkpoint-*")
        for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1])):
            results[folder.name] = test_protocol(folder, data)
    for name, figures in results.items():
        for line, values in figures.items():
            print(
                f"{name:<18}{line:<26}{values['images']} images  top-1 {100 * values['top1']:.1f}  "
                f"top-5 {100 * values['top5']:.1f}  mean rank {values['mean_rank']:.2f}"
            )
    if arguments.output:
        Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.output).write_text(json.dumps(results, indent=1) + "\n")
    if arguments.curve:
        plot_curve(results, Path(arguments.model))


def plot_curve(results: dict, folder: Path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = [(int(n.split("-")[1]), f["30 classes"]) for n, f in results.items() if n.startswith("checkpoint-")]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    steps = [entry["step"] for entry in history if "loss" in entry]
    left.plot(steps, [float(entry["loss"]) for entry in history if "loss" in entry])
    left.set(xlabel="step", ylabel="training loss")
    right.plot([s for s, _ in points], [100 * f["top1"] for _, f in points], marker="o", label="top-1, %")
    right.plot([s for s, _ in points], [100 * f["top5"] for _, f in points], marker="o", label="top-5, %")
    right.set(xlabel="step", ylim=(0, 100))
    right.legend()
    figure.tight_layout()
    figure.savefig(folder / "learning_curve.png", dpi=120)


if __name__ == "__main__":
    main()
