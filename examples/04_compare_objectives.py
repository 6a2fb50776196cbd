"""
Compare training objectives: the same studies, model, steps and seeds, other objectives by their names; one table.

    python examples/04_compare_objectives.py --phantom --output_dir runs/objectives --max_steps 50
    python examples/04_compare_objectives.py --train_file train.jsonl --test_file test.jsonl --prompts_file prompts.yaml \
        --recipe brain-mri --output_dir runs/objectives --objectives itemized_clip flair siglip --seeds 0 1 2
    accelerate launch --multi_gpu --num_processes 2 examples/04_compare_objectives.py \
        --phantom --output_dir runs/objectives --max_steps 50

`--phantom` writes generated brain studies to OUTPUT_DIR/phantom. Your own lists are JSONL (or CSV, parquet), a line a study:
its scans by the names of their sequences, paths from the list's folder on, and its findings; in the test list labels as well:

    {"id": "a1", "images": {"AX_T2": "a1/t2.nii.gz"}, "items": ["Small left frontal mass."], "labels": {"mass": 1, "bleed": 0}}

The prompts file says in words what a label means, e.g. `mass: [mass in the brain, brain tumor]`; without it a label is its own
prompt. Prints a row of zero-shot figures for every run, with intervals over the test studies; seeds may differ by more than
objectives do, so pass several. Every run leaves a model folder and its figures, OUTPUT_DIR/OBJECTIVE-SEED/zero_shot.json.
docs/objectives.md says which objective fits which data.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments

from itemized_clip_hf import ItemizedCLIPTrainer
from itemized_clip_hf.data.records import read_records
from itemized_clip_hf.evaluation.estimates import Estimate, column_title
from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
from itemized_clip_hf.evaluation.protocols import Protocol
from itemized_clip_hf.evaluation.text_table import format_table
from itemized_clip_hf.phantom import ZERO_SHOT_PROMPTS, PhantomDataset, write_dataset
from itemized_clip_hf.recipes import load_recipe
from itemized_clip_hf.specs import read_prompts
from itemized_clip_hf.trainer.from_recipe import build_arguments, build_model, build_processor

METRICS = ("auc", "average_precision")


@dataclass
class ScriptArguments:
    """What is compared, and on what."""

    output_dir: str = field(metadata={"help": "Folder of the runs."})
    objectives: list[str] = field(
        default_factory=lambda: ["itemized_clip", "flair", "clip", "siglip"],
        metadata={"help": "Names of files in itemized_clip_hf/trainer/objectives."},
    )
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "A run of every objective for each."})
    max_steps: int | None = field(default=None, metadata={"help": "Of every run; the recipe's if left out."})
    train_file: str | None = field(default=None, metadata={"help": "List of training studies."})
    test_file: str | None = field(default=None, metadata={"help": "List of test studies with labels."})
    prompts_file: str | None = field(default=None, metadata={"help": "YAML or JSON: label -> prompt or prompts."})
    phantom: bool = field(default=False, metadata={"help": "Train on generated studies instead of lists."})
    phantom_studies: int = field(default=600, metadata={"help": "Generated training studies; a quarter of it to test."})
    recipe: str | None = field(default=None, metadata={"help": "Model, preprocessing and training arguments."})
    tokenizer: str | None = field(default=None, metadata={"help": "Path, where the recipe learns none."})
    context_length: int | None = field(
        default=None, metadata={"help": "Tokens of a text, for all objectives: some join all items of a study."}
    )

    def __post_init__(self):
        if self.phantom == (self.train_file is not None) or (self.train_file is None) != (self.test_file is None):
            raise ValueError("pass --train_file and --test_file, or --phantom for generated studies.")
        self.recipe = self.recipe or ("phantom" if self.phantom else None)
        if self.recipe is None:
            raise ValueError("pass --recipe, a name that `itemized-clip info` lists or a YAML file.")


def write_phantom(script: ScriptArguments, args: TrainingArguments) -> None:
    """Generated studies as the files that this script reads."""
    folder = Path(script.output_dir, "phantom")
    with args.main_process_first():
        if args.process_index == 0:
            for split, count in (("train", script.phantom_studies), ("test", script.phantom_studies // 4)):
                write_dataset(PhantomDataset(split, count), folder / split)
            prompts = "".join(f"{name}: {prompt}\n" for name, prompt in ZERO_SHOT_PROMPTS.items())
            (folder / "prompts.yaml").write_text(prompts)
    script.train_file, script.test_file = (str(folder / split / "studies.jsonl") for split in ("train", "test"))
    script.prompts_file = str(folder / "prompts.yaml")
    script.context_length = script.context_length or 64


def main() -> None:
    """All runs, one after the other, and the table."""
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    recipe = load_recipe(script.recipe)
    recipe = recipe.variant("coarse") if script.recipe == "phantom" else recipe  # a fraction of the time
    if script.phantom:
        write_phantom(script, build_arguments(recipe, script.output_dir, {}))
    if script.context_length is not None:
        recipe = replace(recipe, tokenizer={**(recipe.tokenizer or {}), "context_length": script.context_length})
    studies, test = read_records(script.train_file), read_records(script.test_file)
    processor = build_processor(recipe, studies.items(), script.tokenizer)

    labels = test.label_columns or list(test[0].get("labels", {}))
    prompts = read_prompts(script.prompts_file) if script.prompts_file else {label: label for label in labels}
    protocol = Protocol("zero_shot", "Zero-shot", domain=recipe.domain, findings=prompts)
    budget = {} if script.max_steps is None else {"max_steps": script.max_steps}
    rows = []
    for objective in script.objectives:
        for seed in script.seeds:
            folder = Path(script.output_dir, f"{objective}-{seed}")
            args = build_arguments(recipe, folder, {"objective": objective, "seed": seed, **budget})
            model = build_model(recipe, processor.tokenizer, seed)
            trainer = ItemizedCLIPTrainer(model, args, train_dataset=studies, processing_class=processor)
            start = time.perf_counter()
            trainer.train()
            seconds = round(time.perf_counter() - start)
            trainer.save_model()
            if trainer.is_world_process_zero():
                results = evaluate_protocol(trainer.model.eval(), processor, protocol, script.test_file).results
                (folder / "zero_shot.json").write_text(json.dumps(results, indent=1))
                mean = results["tables"][""]["mean"]
                figures = [str(Estimate.from_dict(mean[metric], metric)) for metric in METRICS]
                rows.append([objective, seed, *figures, trainer.model.config.scoring, seconds])
    if rows:
        print(format_table(["objective", "seed", *map(column_title, METRICS), "scored by", "seconds"], rows))


if __name__ == "__main__":
    main()
