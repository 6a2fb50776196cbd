"""
Zero-shot demo of a model by its name: the scores of one study, and where the model looked for each finding.

    python examples/06_zero_shot_demo.py --phantom --output_dir runs/zero-shot
    python examples/06_zero_shot_demo.py --model_name_or_path org/itemizedclip-brain-mri --output_dir runs/zero-shot \
        --study AX_T1=t1.nii.gz AX_T2=t2.nii.gz --labels "mass in the brain" "acute stroke"
    accelerate launch --num_processes 1 examples/06_zero_shot_demo.py --phantom --output_dir runs/zero-shot   # one process

A study is a NIfTI or DICOM file, a folder or zip of DICOM files, a picture, or the scans of a visit, each with the name of its
sequence before it. Without labels the prompts of the model's domain are used. `--phantom` generates a brain study with a mass
and a bleed and, where no model is named, trains a small one in minutes, which knows little yet: `make demo` leaves a better one
in demo-output/model.

Prints the labels with their scores, highest first. A score is the text-conditioned cosine similarity of its label alone, -1 to
1: scores of a study do not sum to 1 and are not probabilities. OUTPUT_DIR holds a picture of each of the first `--top_k` labels
and report.html, which opens in any browser and holds all of them with a viewer.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.explain.encoded import explain_result
from itemized_clip_hf.explain.plots import plot_item, slug
from itemized_clip_hf.explain.report import write_report
from itemized_clip_hf.models.load import load
from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS, generate_study, write_study
from itemized_clip_hf.phantom.experiment import train_phantom


@dataclass
class ScriptArguments:
    """Which model looks at which study, and for what."""

    output_dir: str = field(metadata={"help": "Folder of the pictures and the report."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Model folder, or its name on the Hub."})
    study: list[str] | None = field(default=None, metadata={"help": "One path, or NAME=PATH for every scan."})
    labels: list[str] | None = field(default=None, metadata={"help": "Texts to look for; the domain's if left out."})
    top_k: int = field(default=3, metadata={"help": "Labels to draw."})
    phantom: bool = field(default=False, metadata={"help": "Look at a generated study."})
    phantom_steps: int = field(default=200, metadata={"help": "Training steps, where no model is named."})
    device: str = field(default="auto", metadata={"help": "As torch names it, or auto."})

    def __post_init__(self):
        if self.phantom == (self.study is not None) or not (self.phantom or self.model_name_or_path):
            raise ValueError("pass --model_name_or_path and --study, or --phantom for a generated study.")


def write_phantom(script: ScriptArguments) -> None:
    """A generated study of a mass and a bleed, and a model, as the files that this script reads."""
    folder = Path(script.output_dir, "phantom")
    files = write_study(generate_study(7, findings=["mass", "bleed"]), folder / "study")
    script.study = [f"{name}={folder / 'study' / file}" for name, file in files.items()]
    script.labels = script.labels or list(ZERO_SHOT_PROMPTS.values())
    if script.model_name_or_path is None:
        train_phantom(folder, steps=script.phantom_steps, studies=600, device=script.device, variant="coarse")
        script.model_name_or_path = str(folder / "model")


def read_study(arguments: list[str]) -> str | dict[str, str]:
    """The path, or sequence name -> path."""
    if len(arguments) == 1 and "=" not in arguments[0]:
        return arguments[0]
    pairs = [argument.partition("=") for argument in arguments]
    study = {name: path for name, _, path in pairs if path}
    if len(study) < len(arguments):
        raise ValueError(f"--study {' '.join(arguments)}: expected one path, or NAME=PATH for every scan.")
    return study


def main() -> None:
    """Scores, pictures, a page."""
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    if script.phantom:
        write_phantom(script)
    folder = Path(script.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = load(script.model_name_or_path, script.device)
    labels = script.labels or (load_domain(model.config.domain).prompts if model.config.domain else None)
    if not labels:
        raise SystemExit("the model's domain has no prompts: pass --labels.")
    result = explain_result(model, processor, read_study(script.study), labels)

    ranked = sorted(range(len(result.findings)), key=lambda number: -result.findings[number].score)
    for number in ranked:
        finding = result.findings[number]
        where = result.scan_names[finding.strongest_scan]
        print(f"{finding.score:+.4f}  {finding.label}  (most of it in {where})")
    for number in ranked[: script.top_k]:
        path = folder / f"{slug(result.findings[number].label)}.png"
        plot_item(result.heat_maps(number), path)
        print(f"written: {path}")
    print(f"written: {write_report(folder / 'report.html', result)}")


if __name__ == "__main__":
    main()
