"""What the libraries say of their own work, and of settings that our recipes make, is not for the user."""

import warnings

import torch
from transformers.utils import logging

from itemized_clip_hf import ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments
from itemized_clip_hf.bars import without_library_bars
from itemized_clip_hf.models.load import load, load_processor
from itemized_clip_hf.recipes import load_recipe
from itemized_clip_hf.trainer.from_recipe import build_arguments


def test_bars_are_as_before_afterwards(capfd):
    def hook(factory, arguments, settings):
        return factory(*arguments, **settings)

    before = logging.set_tqdm_hook(hook)
    try:
        with without_library_bars():
            list(logging.tqdm(range(3), desc="hidden"))
        assert logging.set_tqdm_hook(hook) is hook
        list(logging.tqdm(range(3), desc="shown"))
    finally:
        logging.set_tqdm_hook(before)
    written = capfd.readouterr().err
    assert "shown" in written and "hidden" not in written


def test_a_run_says_nothing_but_its_figures(model_folder, tmp_path, capfd, caplog):
    processor = load_processor(str(model_folder))
    rows = [{"images": {"T1": torch.rand(8, 16, 16)}, "items": ["a mass"]} for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", FutureWarning)
        model, _ = load(model_folder, "cpu")
        recipe = load_recipe("brain-mri").variant("tiny")
        settings = {"max_steps": 1, "gradient_checkpointing": True, "disable_tqdm": True, "report_to": []}
        args = build_arguments(recipe, tmp_path / "run", {**settings, "per_device_train_batch_size": 2})
        trainer = ItemizedCLIPTrainer(model, args, train_dataset=rows, processing_class=processor)
        trainer.train()
        trainer.save_model(str(tmp_path / "run"))
    written = capfd.readouterr().err
    assert not [
        word for word in ("Loading weights", "Writing model", "it/s", "use_cache") if word in written + caplog.text
    ]
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_memory_is_pinned_for_accelerators_only(tmp_path):
    pinned = ItemizedCLIPTrainingArguments(output_dir=str(tmp_path)).dataloader_pin_memory
    assert pinned == torch.accelerator.is_available()
