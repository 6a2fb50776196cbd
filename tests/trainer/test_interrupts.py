"""Ctrl-C, SIGTERM and SIGKILL in `itemized-clip train`: the run that goes on equals the undisturbed one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_models import ITEMS

from itemized_clip_hf.trainer.checkpoints import is_complete, last_complete_checkpoint
from itemized_clip_hf.trainer.output_folder import LOCK, held
from itemized_clip_hf.trainer.used_folder import require_unused

RECIPE = """
domain: brain-mri
tokenizer: {vocab_size: 120, context_length: 24}
image: {scan_size: [8, 16, 16], in_plane_size: 16}
training: {per_device_train_batch_size: 4, report_to: none, use_cpu: true, logging_steps: 1, disable_tqdm: true}
model: {projection_dim: 16, num_pooler_heads: 2, vision_config: {hidden_size: 24, num_hidden_layers: 2, num_attention_heads: 2,
  intermediate_size: 32, image_size: [8, 16, 16], patch_size: [4, 8, 8], attention_scopes: [scan, study], drop_path_rate: 0.2},
  text_config: {hidden_size: 24, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A recipe and a list of 12 studies."""
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path_factory.mktemp("source")
    (folder / "recipe.yaml").write_text(RECIPE)
    generator = np.random.default_rng(0)
    rows = []
    for number in range(12):
        array = np.abs(generator.normal(100, 30, (16, 16, 8))).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 6, 1])), folder / f"{number}.nii.gz")
        rows.append({"id": str(number), "images": {"T1": f"{number}.nii.gz"}, "items": ITEMS[number % 3 :][:2]})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def start(source: Path, output: Path, *options: str, **settings) -> subprocess.Popen:
    settings = {"max_steps": 8, "save_steps": 500, "warmup_steps": 2, **settings}
    command = [sys.executable, "-m", "itemized_clip_cli", "train", "--recipe", str(source / "recipe.yaml"), "--json"]
    command += ["-i", str(source / "list.jsonl"), "-o", str(output), *options]
    command += [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
    )


def wait_for_step(process: subprocess.Popen, step: int) -> list[str]:
    """Reads what a run prints until it has logged that step."""
    read = []
    assert process.stdout is not None
    for line in process.stdout:
        read.append(line)
        if sum("'loss'" in one for one in read) >= step:
            return read
    raise AssertionError(f"ended with {process.wait()}: {''.join(read)}\n{process.stderr.read()}")


def run(source: Path, output: Path, *options: str, **settings) -> subprocess.CompletedProcess:
    process = start(source, output, *options, **settings)
    out, error = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = run(source, folder)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "model.safetensors")


def assert_equal(folder: Path, expected: dict) -> None:
    found = load_file(folder / "model.safetensors")
    assert list(found) == list(expected)
    different = [name for name in expected if not bool((found[name] == expected[name]).all())]
    assert not different


def children(process: subprocess.Popen) -> list[int]:
    """Processes of the session that the run began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def orphans() -> set[str]:
    """Semaphores and shared memory that no process has any more."""
    found = {name for name in os.listdir("/dev/shm")} if os.path.isdir("/dev/shm") else set()
    for path in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = path.read_text()
        except OSError:
            continue
        found = {name for name in found if f"/dev/shm/{name}" not in text}
    return found


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_equals_the_undisturbed_run(source, undisturbed, tmp_path):
    """With processes that read, which a terminal sends the signal too."""
    output, before = tmp_path / "run", orphans()
    process = start(source, output, dataloader_num_workers=1, max_steps=8)
    wait_for_step(process, 2)
    os.killpg(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "Traceback" not in error + out and "--resume" in error and "leaked" not in error
    checkpoint = last_complete_checkpoint(output)
    assert checkpoint is not None and checkpoint in error and not (output / "model.safetensors").exists()
    assert not children(process) and orphans() <= before and not (output / LOCK).exists()
    with pytest.raises(ValueError, match="up to step .*--resume"):
        require_unused(output)
    done = run(source, output, "--resume")
    assert done.returncode == 0, done.stderr
    assert_equal(output, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("seed", range(4))
def test_any_moment(source, undisturbed, tmp_path, number, seed):
    """Ended up to three times at random moments, from the first import to the last file."""
    moments = random.Random(100 * seed + number)
    output, before = tmp_path / "run", orphans()
    settings = {"save_steps": 2, "dataloader_num_workers": seed % 2}
    whole = time.monotonic()
    assert run(source, tmp_path / "timed", **settings).returncode == 0
    whole = time.monotonic() - whole
    for _ in range(3):
        process = start(source, output, "--resume", **settings)
        try:
            process.wait(moments.uniform(0.05, 1.0) * whole)
        except subprocess.TimeoutExpired:
            (os.killpg if seed % 2 else os.kill)(process.pid, number)
        out, error = process.communicate(timeout=120)
        assert process.returncode in (0, 128 + number, -number), error
        assert "Traceback" not in error and "leaked" not in error, error
        assert not children(process) and orphans() <= before
        if process.returncode == 0 or (process.returncode == 128 + number and "complete" in error):
            break
    else:
        done = run(source, output, "--resume", **settings)
        assert done.returncode == 0, done.stderr
    assert_equal(output, undisturbed)
    assert not (output / LOCK).exists() and all(is_complete(path) for path in output.glob("checkpoint-*"))


def test_two_runs_in_one_folder_and_folders_that_cannot_be_written(tmp_path):
    with held(tmp_path, False):
        with pytest.raises(ValueError, match="another training is at work in"), held(tmp_path, False):
            pass
        assert (tmp_path / LOCK).exists()
        with held(tmp_path, False, first=False):  # another process of the same run
            pass
    assert not (tmp_path / LOCK).exists()
    (tmp_path / LOCK).touch()  # of a run that was killed
    with held(tmp_path, False):
        pass
    assert not (tmp_path / LOCK).exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="nothing can be written to"), held(tmp_path / "file" / "run", False):
        pass
