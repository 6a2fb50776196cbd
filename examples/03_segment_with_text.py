"""
Draw what a text names: a mask decoder on a trained model, in a training loop of MONAI's transforms, data set and loader.

    python examples/03_segment_with_text.py --phantom --output_dir runs/segmenter
    python examples/03_segment_with_text.py --model_name_or_path runs/reports --train_file train.jsonl --test_file test.jsonl \
        --output_dir runs/segmenter --num_epochs 50
    accelerate launch --multi_gpu --num_processes 2 examples/03_segment_with_text.py --phantom \
        --model_name_or_path runs/reports --output_dir runs/segmenter

`--phantom` writes generated brain studies to OUTPUT_DIR/phantom and, where no model is named, trains a small one on reports.
Your own lists are JSONL, a line a study: its scans by the names of their sequences, its findings, and a mask file for each,
null where nobody drew one; `absent` lists texts of findings that it does not have, `findings` what each item is about:

    {"id": "a1", "images": {"AX_T2": "a1/t2.nii.gz"}, "items": ["Small left frontal mass.", "White matter lesion."],
     "masks": ["a1/mass.nii.gz", null], "absent": ["bleed in the brain"], "findings": ["mass", "lesion"]}

Masks may lie in a grid of their own: they are brought to each scan as the model sees it. The model itself stays as it is; the
decoder is guided by where its pooler looks. Prints the loss and, of each finding of the test list, Dice and surface distance in
the scan's own grid. OUTPUT_DIR is a model folder for `itemized-clip segment`. A study that cannot be read ends this loop;
`itemized-clip train --task segmentation` leaves it out and lists it. Needs the extra `monai`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, DeleteItemsd, LoadImage, RandGaussianNoised, SpatialResample, Transform
from transformers import HfArgumentParser, get_cosine_schedule_with_warmup

from itemized_clip_hf import ItemizedCLIPForSemanticSegmentation
from itemized_clip_hf.data.studies.masks import UNKNOWN, read_mask_records
from itemized_clip_hf.evaluation.masks import evaluate_masks
from itemized_clip_hf.evaluation.tasks.run import format_task
from itemized_clip_hf.models.load import load
from itemized_clip_hf.models.segmenter import lay_out_for_cpu
from itemized_clip_hf.monai_transforms import ItemizedCLIPProcessd
from itemized_clip_hf.phantom import PhantomDataset, write_dataset
from itemized_clip_hf.phantom.experiment import train_phantom


@dataclass
class ScriptArguments:
    """What is trained, and on what."""

    output_dir: str = field(metadata={"help": "Folder of the model."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "Model folder, or its name on the Hub."})
    train_file: str | None = field(default=None, metadata={"help": "List of training studies with masks."})
    test_file: str | None = field(default=None, metadata={"help": "The same, to test."})
    phantom: bool = field(default=False, metadata={"help": "Train on generated studies instead of lists."})
    phantom_studies: int = field(default=200, metadata={"help": "Generated training studies; a quarter of it to test."})
    phantom_steps: int = field(default=200, metadata={"help": "Steps of the model, where none is named."})
    num_epochs: int = field(default=8, metadata={"help": "Passes through the training studies."})
    batch_size: int = field(default=4, metadata={"help": "Studies of a step and process."})
    max_scans: int = field(default=4, metadata={"help": "Scans of a study; smaller ones are padded."})
    max_items: int = field(default=3, metadata={"help": "Texts of a study, the last ones of absent findings."})

    def __post_init__(self):
        own = (self.model_name_or_path, self.train_file, self.test_file)
        if self.phantom == (self.train_file is not None) or not (self.phantom or all(own)):
            raise ValueError("pass --model_name_or_path, --train_file, --test_file, or --phantom for generated ones.")


class ItemMasks(Transform):
    """Mask files of the texts, None where there is nothing -> `labels` (N, K, D, H, W) in the grid of each processed scan."""

    def __init__(self, max_items: int):
        self.max_items = max_items
        self.load = LoadImage(image_only=True, ensure_channel_first=True)
        self.resample = SpatialResample(mode="nearest", padding_mode="zeros")

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """The study with its labels; what is padded is unknown."""
        size, affines = data["pixel_values"].shape[-3:], data["scan_affines"][data["scan_mask"]]
        labels = torch.full((len(data["scan_mask"]), self.max_items, *size), UNKNOWN, dtype=torch.uint8)
        for place, path in enumerate(data["masks"]):
            labels[: len(affines), place] = 0
            if path is not None:
                mask = self.load(path)
                for scan, affine in enumerate(affines):
                    labels[scan, place] = self.resample(mask, dst_affine=affine, spatial_size=size)[0].as_tensor()
                if not labels[: len(affines), place].any():
                    raise ValueError(f"{Path(path).name} is empty, or lies outside of every scan of its study.")
        return {**data, "labels": labels}


def as_example(record: dict[str, Any], max_items: int) -> dict[str, Any]:
    """Texts of a study that have a mask, and of findings that it does not have."""
    drawn = [(text, mask) for text, mask in zip(record["items"], record["masks"]) if mask is not None]
    known = [*drawn[: max_items - 1], *((text, None) for text in record.get("absent", ()))][:max_items]
    return {"images": record["images"], "texts": [text for text, _ in known], "masks": [mask for _, mask in known]}


def write_phantom(script: ScriptArguments, accelerator: Accelerator) -> None:
    """Generated studies and a model, as the files that this script reads."""
    folder = Path(script.output_dir, "phantom")
    if script.model_name_or_path is None:
        if accelerator.num_processes > 1:
            raise SystemExit("several processes need a model: pass --model_name_or_path, e.g. the folder of 01.")
        train_phantom(folder, steps=script.phantom_steps, studies=600, variant="coarse")
        script.model_name_or_path = str(folder / "model")
    with accelerator.main_process_first():
        if accelerator.is_main_process:  # seed 1: studies that the model was not trained on
            for split, count in (("train", script.phantom_studies), ("test", script.phantom_studies // 4)):
                write_dataset(PhantomDataset(split, count, seed=1), folder / split)
    script.train_file, script.test_file = (str(folder / split / "studies.jsonl") for split in ("train", "test"))


def main() -> None:
    """Training, the model folder and the figures."""
    (script,) = HfArgumentParser(ScriptArguments).parse_args_into_dataclasses()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    torch.manual_seed(0)
    if script.phantom:
        write_phantom(script, accelerator)
    base, processor = load(script.model_name_or_path, "cpu")
    model = ItemizedCLIPForSemanticSegmentation.from_model(base, {"channels": 8})
    model.requires_grad_(False).mask_decoder.requires_grad_(True)
    lay_out_for_cpu(model)  # its weights, in an order that is twice as fast there
    process = ItemizedCLIPProcessd("images", processor, "texts", max_scans=script.max_scans, max_items=script.max_items)
    noise = RandGaussianNoised("pixel_values", prob=0.5, std=0.1)  # cached is what stands before it
    used = DeleteItemsd(["masks", "scan_affines"])
    transform = Compose([process, ItemMasks(script.max_items), used, noise])
    examples = [as_example(record, script.max_items) for record in read_mask_records(script.train_file)]
    loader = DataLoader(CacheDataset(examples, transform), batch_size=script.batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(model.mask_decoder.parameters(), lr=3e-3, weight_decay=0.01)
    model, optimizer, loader = accelerator.prepare(model.train(), optimizer, loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, 20, len(loader) * script.num_epochs)
    for epoch in range(script.num_epochs):
        for batch in loader:
            drawn = torch.multinomial(batch["scan_mask"].float(), 1)  # one scan of each study at a step
            batch["labels"][torch.arange(script.max_scans, device=drawn.device) != drawn] = UNKNOWN
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model).eval()
        model.save_pretrained(script.output_dir)
        processor.save_pretrained(script.output_dir)
        print(format_task(evaluate_masks(model, processor, read_mask_records(script.test_file)).to_dict()))


if __name__ == "__main__":
    main()
