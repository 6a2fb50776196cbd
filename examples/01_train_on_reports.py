"""
Train on your own reports: a list of reports and image files in, a model folder and zero-shot AUC on a test list out.

    python examples/01_train_on_reports.py --phantom --output_dir runs/reports --max_steps 100
    python examples/01_train_on_reports.py --train_file train.jsonl --test_file test.jsonl --prompts_file prompts.yaml \
        --recipe brain-mri --tokenizer vocab.txt --output_dir runs/reports
    accelerate launch --multi_gpu --num_processes 2 examples/01_train_on_reports.py \
        --phantom --output_dir runs/reports --max_steps 100

`--phantom` writes generated brain studies to OUTPUT_DIR/phantom and trains on them. Your own lists are JSONL (or CSV, parquet),
a line a study: its scans by the names of their sequences, paths from the list's folder on; its report as it was written, or the
findings in it as `items`; in the test list labels, where null is unknown:

    {"id": "a1", "images": {"AX_T2": "a1/t2.nii.gz"}, "report": "Small mass in the left frontal lobe. No bleed."}
    {"id": "b7", "images": {"AX_T2": "b7/t2.nii.gz"}, "items": ["Large cyst."], "labels": {"mass": 0, "bleed": null}}

The prompts file says in words what a label means, e.g. `mass: [mass in the brain, brain tumor]`; without it a label is its own
prompt. Every training argument of the library is an option too; what is left out is as the recipe says. Prints the terms of the
loss and a table, AUC of every finding with its interval, which OUTPUT_DIR/zero_shot.json holds in full.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from transformers import HfArgumentParser

from itemized_clip_hf import ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments
from itemized_clip_hf.data.itemize import itemize_report
from itemized_clip_hf.data.records import Records, read_records
from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
from itemized_clip_hf.evaluation.evaluators import ProtocolEvaluator
from itemized_clip_hf.evaluation.protocols import Protocol
from itemized_clip_hf.evaluation.protocols.report import format_results
from itemized_clip_hf.models.load import load
from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS, PhantomDataset, write_dataset
from itemized_clip_hf.recipes import Recipe, load_recipe
from itemized_clip_hf.specs import read_prompts
from itemized_clip_hf.trainer.from_recipe import build_arguments, build_model, build_processor


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    train_file: str | None = field(default=None, metadata={"help": "List of training studies."})
    test_file: str | None = field(default=None, metadata={"help": "List of test studies with labels."})
    prompts_file: str | None = field(default=None, metadata={"help": "YAML or JSON: label -> prompt or prompts."})
    phantom: bool = field(default=False, metadata={"help": "Train on generated studies instead of lists."})
    phantom_studies: int = field(default=600, metadata={"help": "Generated training studies; a quarter of it to test."})
    recipe: str | None = field(default=None, metadata={"help": "Model, preprocessing and defaults of the training."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Fine-tune this model, no fresh one."})
    tokenizer: str | None = field(default=None, metadata={"help": "Of a fresh model, where it is not learned."})

    def __post_init__(self):
        if self.phantom == (self.train_file is not None) or (self.train_file is None) != (self.test_file is None):
            raise ValueError("pass --train_file and --test_file, or --phantom for generated studies.")
        self.recipe = self.recipe or ("phantom" if self.phantom else None)
        if self.recipe is None:
            raise ValueError("pass --recipe, a name that `itemized-clip info` lists or a YAML file.")


def parse() -> tuple[ScriptArguments, ItemizedCLIPTrainingArguments, Recipe]:
    """Options; those that are left out are as the recipe has them."""
    parser = HfArgumentParser((ScriptArguments, ItemizedCLIPTrainingArguments))
    options, _ = parser.parse_known_args()
    recipe = load_recipe(options.recipe) if options.recipe else load_recipe("phantom").variant("coarse")
    changes = {} if options.objective == parser.get_default("objective") else {"objective": options.objective}
    defaults = build_arguments(recipe, options.output_dir, changes)
    names = (*recipe.training, "per_device_train_batch_size", "use_cpu")
    parser.set_defaults(**{name: getattr(defaults, name) for name in names})
    return (*parser.parse_args_into_dataclasses(), recipe)


def write_phantom(folder: Path, studies: int) -> None:
    """Generated studies as the files that this script reads: train/studies.jsonl, test/studies.jsonl, prompts.yaml."""
    for split, count in (("train", studies), ("test", studies // 4)):
        listed = write_dataset(PhantomDataset(split, count), folder / split)
        rows = [json.loads(line) for line in listed.read_text().splitlines()]
        for row in rows:
            row["report"] = " ".join(row.pop("items"))
        listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.yaml").write_text("".join(f"{name}: {prompt}\n" for name, prompt in ZERO_SHOT_PROMPTS.items()))


def read_studies(path: str, domain: str) -> Records:
    """The studies of a list; a report becomes the list of its findings, by rules."""
    studies = read_records(path)
    if studies.items_column != "report":
        return studies
    rows = [{**row, "items": itemize_report(row["report"], domain).items} for row in studies.rows]
    kept = [row for row in rows if row["items"]]
    items = sum(len(row["items"]) for row in kept)
    PartialState().print(
        f"{len(rows)} reports, {items} items; {len(rows) - len(kept)} reports have none and are left out"
    )
    return Records(kept, studies.folder)


def main() -> None:
    """Training, the model folder and the table."""
    script, args, recipe = parse()
    if script.phantom:
        folder = Path(args.output_dir) / "phantom"
        with args.main_process_first():
            if args.process_index == 0:
                write_phantom(folder, script.phantom_studies)
        script.train_file, script.test_file = (str(folder / split / "studies.jsonl") for split in ("train", "test"))
        script.prompts_file = str(folder / "prompts.yaml")

    studies, test = read_studies(script.train_file, recipe.domain), read_records(script.test_file)
    if script.model_name_or_path is not None:
        model, processor = load(script.model_name_or_path, "cpu")
        if model.config.domain != recipe.domain:
            raise ValueError(f"the model is of domain {model.config.domain!r}, the recipe of {recipe.domain!r}.")
    else:
        processor = build_processor(recipe, studies.items(), script.tokenizer)
        model = build_model(recipe, processor.tokenizer, args.seed)

    labels = test.label_columns or list(test[0].get("labels", {}))
    prompts = read_prompts(script.prompts_file) if script.prompts_file else {label: label for label in labels}
    protocol = Protocol("zero_shot", "Zero-shot", domain=recipe.domain, findings=prompts)
    trainer = ItemizedCLIPTrainer(
        model,
        args,
        train_dataset=studies,
        processing_class=processor,
        evaluators=[ProtocolEvaluator(protocol, script.test_file)],  # at every evaluation, see --eval_strategy
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        found = evaluate_protocol(trainer.model.eval(), processor, protocol, script.test_file)
        Path(args.output_dir, "zero_shot.json").write_text(json.dumps(found.results, indent=1))
        print(format_results(found.results))


if __name__ == "__main__":
    main()
