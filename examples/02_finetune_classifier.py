"""
Fine-tune a classifier of studies on a list with labels, by the library's own Trainer.

    python examples/02_finetune_classifier.py --phantom --output_dir runs/classifier --num_train_epochs 3
    python examples/02_finetune_classifier.py --model_name_or_path runs/reports --train_file train.jsonl \
        --eval_file test.jsonl --prompts_file prompts.yaml --output_dir runs/classifier --num_train_epochs 10
    accelerate launch --multi_gpu --num_processes 2 examples/02_finetune_classifier.py --phantom \
        --model_name_or_path runs/reports --output_dir runs/classifier

`--phantom` writes generated brain studies to OUTPUT_DIR/phantom and, where no model is named, trains a small one on reports.
Your own lists are JSONL (or CSV, parquet), a line a study: its scans by the names of their sequences, paths from the list's
folder on, and its labels, where null is unknown; or one class a study:

    {"id": "a1", "images": {"AX_T2": "a1/t2.nii.gz"}, "labels": {"mass": 1, "bleed": null}}
    {"id": "b7", "images": {"AX_T2": "b7/t2.nii.gz"}, "label": "glioma"}

Every label's query starts from its prompts (`mass: [mass in the brain, brain tumor]` in the prompts file; without it from its
name), so that the classifier is the zero-shot one before its first step. Prints AUC of every label before and after training,
with intervals over the evaluation studies. OUTPUT_DIR is a folder for pipeline("image-classification"). Freezing, adapters and
rates for layers are in `itemized-clip train --task classification`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

from itemized_clip_hf import ItemizedCLIPForImageClassification
from itemized_clip_hf.data.records import read_records
from itemized_clip_hf.evaluation.label_scores import summarize_labels
from itemized_clip_hf.evaluation.text_table import format_table
from itemized_clip_hf.models.load import load
from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS, PhantomDataset, write_dataset
from itemized_clip_hf.phantom.experiment import train_phantom
from itemized_clip_hf.specs import read_prompts
from itemized_clip_hf.trainer.supervised.label_table import SINGLE_LABEL, read_study_labels
from itemized_clip_hf.trainer.supervised.labels import ClassificationCollator, LabeledStudies


@dataclass
class ScriptArguments:
    """What is fine-tuned, and on what."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Model folder, or its name on the Hub."})
    train_file: str | None = field(default=None, metadata={"help": "List of training studies with labels."})
    eval_file: str | None = field(default=None, metadata={"help": "List of studies to evaluate on."})
    prompts_file: str | None = field(default=None, metadata={"help": "YAML or JSON: label -> prompt or prompts."})
    phantom: bool = field(default=False, metadata={"help": "Train on generated studies instead of lists."})
    phantom_studies: int = field(default=200, metadata={"help": "Generated training studies, and as many to evaluate."})
    phantom_steps: int = field(default=200, metadata={"help": "Steps of the model, where none is named."})

    def __post_init__(self):
        if self.phantom == (self.train_file is not None) or (self.train_file is None) != (self.eval_file is None):
            raise ValueError("pass --train_file and --eval_file, or --phantom for generated studies.")
        if not (self.phantom or self.model_name_or_path):
            raise ValueError("pass --model_name_or_path, or --phantom for generated studies and a small model.")


def parse() -> tuple[ScriptArguments, TrainingArguments]:
    """Options, with defaults that suit a classifier."""
    parser = HfArgumentParser((ScriptArguments, TrainingArguments))
    parser.set_defaults(
        learning_rate=3e-4,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,  # the collator reads the images
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    return parser.parse_args_into_dataclasses()


def write_phantom(script: ScriptArguments, args: TrainingArguments) -> None:
    """Generated studies and a model, as the files that this script reads."""
    folder = Path(args.output_dir, "phantom")
    if script.model_name_or_path is None:
        if args.world_size > 1:
            raise SystemExit("several processes need a model: pass --model_name_or_path, e.g. the folder of 01.")
        train_phantom(folder, steps=script.phantom_steps, studies=600, variant="coarse")
        script.model_name_or_path = str(folder / "model")
    with args.main_process_first():
        if args.process_index == 0:
            for split in ("train", "test"):  # seed 1: studies that the model was not trained on
                write_dataset(PhantomDataset(split, script.phantom_studies, seed=1), folder / split)
            prompts = "".join(f"{name}: {prompt}\n" for name, prompt in ZERO_SHOT_PROMPTS.items())
            (folder / "prompts.yaml").write_text(prompts)
    script.train_file, script.eval_file = (str(folder / split / "studies.jsonl") for split in ("train", "test"))
    script.prompts_file = str(folder / "prompts.yaml")


def main() -> None:
    """Training, the model folder and the table."""
    script, args = parse()
    if script.phantom:
        write_phantom(script, args)
    base, processor = load(script.model_name_or_path, "cpu")
    studies, others = read_records(script.train_file), read_records(script.eval_file)
    labels = read_study_labels(studies)
    truth = read_study_labels(others, like=labels)

    prompts = read_prompts(script.prompts_file) if script.prompts_file else {name: name for name in labels.names}
    model = ItemizedCLIPForImageClassification.from_prompts(
        base, processor, {name: prompts[name] for name in labels.names}, problem_type=labels.problem_type
    )
    one_class = labels.problem_type == SINGLE_LABEL
    trainer = Trainer(
        model,
        args,
        data_collator=ClassificationCollator(processor, num_labels=None if one_class else len(labels.names)),
        train_dataset=LabeledStudies(studies, labels.table, labels.numbers),
        eval_dataset=LabeledStudies(others, truth.table, truth.numbers),
        processing_class=processor,
    )

    def measure() -> dict[str, str]:
        found = trainer.predict(trainer.eval_dataset)
        table = summarize_labels(labels.names, found.predictions, found.label_ids)["labels"]
        return {name: str(row.estimates.get("auc", "-")) for name, row in table.rows.items()} | {
            "mean": str(table.mean["auc"])
        }

    before = measure()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    after = measure()
    if trainer.is_world_process_zero():
        rows = [[name, before[name], after[name]] for name in before]
        print(format_table(["AUC (%)", "zero-shot", "fine-tuned"], rows))


if __name__ == "__main__":
    main()
