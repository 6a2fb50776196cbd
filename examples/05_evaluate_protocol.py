"""
Evaluate a model by a protocol: a YAML file says what is asked, a table what is true; figures with intervals come out.

    python examples/05_evaluate_protocol.py --phantom --output_dir runs/protocol
    python examples/05_evaluate_protocol.py --model_name_or_path runs/reports --protocol own.yaml --data studies \
        --labels_file labels.csv --validation_data validation.jsonl --output_dir runs/protocol
    accelerate launch --num_processes 1 examples/05_evaluate_protocol.py --phantom --output_dir runs/protocol   # one process

`--phantom` writes a protocol and generated brain studies to OUTPUT_DIR/phantom and, where no model is named, trains a small
one in minutes, which knows little yet: `make demo` leaves a better one in demo-output/model. A protocol of your own:

    title: Bleeds and masses
    domain: head-ct
    findings:
      bleed: [acute intracranial bleed, hemorrhage in the brain]   # prompts are averaged
      mass: mass in the brain

Its data are a folder with a file or folder for each study, named by its id, and a CSV with the column `id` and one column for
each finding (1, 0, empty for unknown); or one list of studies with `images` and `labels`, a JSON object a line. The names that
`itemized-clip info` prints, e.g. `--protocol ct-rate`, are published benchmarks. With `--validation_data` thresholds are chosen
there, without it on the test labels, as the benchmarks do.

Prints the table; OUTPUT_DIR holds results.json (figures, prompts, hashes of model and data, `model-index` of a card),
scores.jsonl, with which a killed run goes on, and curves and heat maps of the worst studies in plots/.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from itemized_clip_hf.evaluation.evaluate import evaluate_protocol, open_record
from itemized_clip_hf.evaluation.protocols import load_protocol
from itemized_clip_hf.evaluation.protocols.report import draw_evaluation, format_results
from itemized_clip_hf.evaluation.results import ProtocolResult
from itemized_clip_hf.models.load import load
from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS, PhantomDataset, write_dataset
from itemized_clip_hf.phantom.experiment import train_phantom


@dataclass
class ScriptArguments:
    """Which model is asked what, about which studies."""

    output_dir: str = field(metadata={"help": "Folder of what comes out."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Model folder, or its name on the Hub."})
    protocol: str | None = field(default=None, metadata={"help": "A YAML file, or the name of a protocol."})
    data: str | None = field(default=None, metadata={"help": "Folder of the studies, or a list of them."})
    labels_file: str | None = field(default=None, metadata={"help": "Label table, where it is not in the folder."})
    validation_data: str | None = field(default=None, metadata={"help": "Studies to choose thresholds on."})
    validation_labels_file: str | None = field(default=None, metadata={"help": "Their label table."})
    phantom: bool = field(default=False, metadata={"help": "Evaluate on generated studies."})
    phantom_studies: int = field(default=150, metadata={"help": "Generated test studies."})
    phantom_steps: int = field(default=200, metadata={"help": "Training steps, where no model is named."})
    batch_size: int = field(default=8, metadata={"help": "Studies of one pass through the model."})
    num_workers: int = field(default=2, metadata={"help": "Threads that read studies ahead."})
    resamples: int = field(default=1000, metadata={"help": "Of the bootstrap; 0: no intervals."})
    device: str = field(default="auto", metadata={"help": "As torch names it, or auto."})

    def __post_init__(self):
        own = (self.model_name_or_path, self.protocol, self.data)
        if self.phantom == (self.data is not None) or not (self.phantom or all(own)):
            raise ValueError("pass --model_name_or_path, --protocol and --data, or --phantom for generated studies.")


def write_phantom(script: ScriptArguments) -> None:
    """A protocol, generated studies and a model, as the files that this script reads."""
    folder = Path(script.output_dir, "phantom")
    test, validation = PhantomDataset("test", script.phantom_studies), PhantomDataset("train", 100, seed=1)
    script.data, script.validation_data = (
        str(write_dataset(studies, folder / name)) for studies, name in ((test, "test"), (validation, "validation"))
    )
    script.protocol = str(folder / "phantom.yaml")
    findings = "".join(f"  {name}: {prompt}\n" for name, prompt in ZERO_SHOT_PROMPTS.items())
    Path(script.protocol).write_text(f"title: Generated studies\ndomain: brain-mri\nfindings:\n{findings}")
    if script.model_name_or_path is None:
        train_phantom(folder, steps=script.phantom_steps, studies=600, device=script.device, variant="coarse")
        script.model_name_or_path = str(folder / "model")


def main() -> None:
    """Scores, figures, plots."""
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    if script.phantom:
        write_phantom(script)
    folder = Path(script.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = load(script.model_name_or_path, script.device)
    protocol = load_protocol(script.protocol)
    evaluation = evaluate_protocol(
        model,
        processor,
        protocol,
        script.data,
        labels=script.labels_file,
        validation=script.validation_data,
        validation_labels=script.validation_labels_file,
        scores_file=folder / "scores.jsonl",
        batch_size=script.batch_size,
        num_workers=script.num_workers,
        resamples=script.resamples,
        progress=True,
        trained_on=script.model_name_or_path,
    )
    index = ProtocolResult.from_dict(evaluation.results).model_index(Path(script.model_name_or_path).name)
    results = {**evaluation.results, "model_index": index}
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    print(format_results(results))
    for file in draw_evaluation(model, processor, protocol, evaluation, folder / "plots", open_record):
        print(f"written: {file}")


if __name__ == "__main__":
    main()
