"""Resident pictures: the batches of the ordinary way, for the same draws; checkpoints by the clock; runs that are killed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_runs import pictures, processor_of, trainer_of
from PIL import Image
from tiny_models import SUPPORT

from itemized_clip_hf.trainer.collator import ItemizedCLIPCollator
from itemized_clip_hf.trainer.resident import ResidentPictures, bicubic_matrix, to_8_bits
from itemized_clip_hf.trainer.sampler import SeededDataset, SeededSampler

STD = 0.26  # of the normalisation, about: one step of 8 bits is 1 / 255 / STD


def assert_same_batches(records, collator, batches: int, size: int = 8):
    resident = ResidentPictures(records, collator)
    plain = SeededDataset(records, collator.prepare, collator.report)
    sampler, done, differing = SeededSampler(len(records), 3), 0, []
    while done < batches:
        keys = list(sampler)
        for start in range(0, len(keys) - size + 1, size):
            expected = collator([plain[key] for key in keys[start : start + size]])
            found = resident.collate([resident[key] for key in keys[start : start + size]])
            pixels, wanted = resident.pixels(found.pop("picture")), expected.pop("pixel_values")
            assert pixels.shape == wanted.shape
            steps = ((pixels - wanted).abs() * STD * 255).round()
            assert steps.max() <= 2, f"{steps.max():.0f} steps of 8 bits"
            differing.append((steps > 0).float().mean().item())
            expected.pop("scan_mask")
            assert set(found) == set(expected)
            for name, tensor in expected.items():
                torch.testing.assert_close(found[name], tensor)
            done += 1
        sampler.set_epoch(sampler.epoch + 1)
    assert np.mean(differing) < 0.05  # where Pillow goes down before it goes across


@pytest.mark.parametrize(
    ("side", "turns", "scale"), [(40, True, (0.3, 1.0)), (90, False, (0.05, 1.0)), (32, True, (0.9, 1.0))]
)
def test_the_batches_of_the_ordinary_way(tokenizer, side, turns, scale):
    """Crops that shrink, that grow, and both; 100 batches."""
    processor = processor_of(tokenizer, train_rot90_flip=turns, train_crop_scale=list(scale))
    sampling = {"max_merged": 3, "consecutive_prob": 0.5}
    collator = ItemizedCLIPCollator(processor, max_items=3, diverse_sampling=sampling)
    assert_same_batches(pictures(side=side), collator, 100 if side == 40 else 12)


def test_real_pictures(data_folder, tokenizer):
    from itemized_clip_hf.data.studies.cache import CachedPictures
    from itemized_clip_hf.data.studies.records import read_records

    rows = read_records(data_folder / "rsicd" / "val.parquet")
    first = [rows[index] for index in range(64)]

    class First:
        def __len__(self):
            return len(first)

        def __getitem__(self, index):
            return dict(first[index])

    records = CachedPictures(First(), 72, progress=False)
    assert_same_batches(records, ItemizedCLIPCollator(processor_of(tokenizer), max_items=3), 8)


@pytest.mark.parametrize(
    ("start", "length", "wanted"), [(0, 40, 32), (5, 30, 32), (3, 9, 32), (11, 29, 7), (0, 32, 32)]
)
def test_the_filter_is_that_of_pillow(start, length, wanted):
    line = np.random.default_rng(1).integers(0, 255, (1, 40), dtype=np.uint8)
    expected = np.asarray(
        Image.fromarray(line[:, start : start + length]).resize((wanted, 1), Image.Resampling.BICUBIC)
    )
    weights = bicubic_matrix(torch.tensor([start]), torch.tensor([length]), 40, wanted)[0]
    found = to_8_bits(weights @ torch.from_numpy(line[0]).double())
    assert np.array_equal(found.numpy(), expected[0])


def test_training_is_the_same(tokenizer, tmp_path):
    losses = []
    for resident in (False, True):
        trainer = trainer_of(tokenizer, tmp_path / str(resident), resident, dataloader_num_workers=2 * resident)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_what_cannot_stay(tokenizer):
    collator = ItemizedCLIPCollator(processor_of(tokenizer))
    with pytest.raises(ValueError, match="of one size"):
        ResidentPictures([*pictures(2), *pictures(1, side=44)], collator)
    plain = ItemizedCLIPCollator(processor_of(tokenizer, train_crop_scale=None))
    with pytest.raises(ValueError, match="need train_crop_scale"):
        ResidentPictures(pictures(2), plain)


def test_checkpoints_by_the_clock(tokenizer, tmp_path):
    trainer = trainer_of(tokenizer, tmp_path, True, save_minutes=1e-6, save_strategy="no", max_steps=3)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in (1, 2, 3)]
    with pytest.raises(ValueError, match="save_minutes is 0"):
        trainer_of(tokenizer, tmp_path / "no", True, save_minutes=0)


RUN = """
import sys, time
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
from pathlib import Path
from tiny_models import ITEMS
from picture_runs import trainer_of
from transformers import TrainerCallback
from itemized_clip_hf.models.tokenizer import train_tokenizer
from transformers.trainer_utils import get_last_checkpoint

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(float(sys.argv[3]))

folder = Path(sys.argv[2])
trainer = trainer_of(train_tokenizer(ITEMS, 120, 24), folder, True, max_steps=24, save_minutes=0.005, save_total_limit=3)
trainer.add_callback(Slow())
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
trainer.save_model()
print("resumed", trainer.state.global_step)
"""


def start(folder: Path, delay: float) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(SUPPORT), str(folder), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_with_the_same_weights(tmp_path):
    undisturbed = start(tmp_path / "once", 0)
    _, errors = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, errors[-2000:]
    killed_at = []
    for _ in range(2):
        run = start(tmp_path / "killed", 0.3)
        before = {path.name for path in (tmp_path / "killed").glob("checkpoint-*")}
        deadline = time.time() + 200
        while time.time() < deadline and run.poll() is None:
            fresh = {
                p.name for p in (tmp_path / "killed").glob("checkpoint-*") if (p / "trainer_state.json").exists()
            } - before
            if len(fresh) >= 2:
                break
            time.sleep(0.05)
        assert run.poll() is None, f"it ended before it was killed: {run.communicate()[1][-1500:]}"
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        killed_at.append(max(int(p.name.split("-")[1]) for p in (tmp_path / "killed").glob("checkpoint-*")))
    assert 0 < killed_at[0] < killed_at[1] < 24
    run = start(tmp_path / "killed", 0)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors[-2000:]
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "once")
