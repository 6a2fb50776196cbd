"""`itemized-clip embed` on files: what is told, what a killed run leaves, what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner
from cohorts import PROMPTS

pytest.importorskip("nibabel")
pytest.importorskip("pyarrow")

from itemized_clip_cli import main
from itemized_clip_hf.cohort.file import Cohort
from itemized_clip_hf.phantom import PhantomDataset, write_dataset


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_dataset(PhantomDataset("test", 5, shape=(8, 16, 16)), tmp_path_factory.mktemp("studies"))


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_a_cohort_of_files(studies, model_folder, tmp_path):
    lines = [json.loads(line) for line in studies.read_text().splitlines()]
    lines[2]["images"]["T1"] = "nowhere.nii.gz"  # one scan of a study
    lines[4]["images"] = "nowhere.nii.gz"
    (studies.parent / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "prompts.yaml").write_text(json.dumps(PROMPTS))
    arguments = ["embed", "-m", model_folder, "-i", studies.parent / "own.jsonl", "-o", tmp_path / "c.parquet"]
    arguments += ["--prompts", tmp_path / "prompts.yaml", "--tokens", "--device", "cpu", "--json"]
    done = run(*arguments)
    assert done.exit_code == 1 and "1 of 5 studies could not be embedded: see" in done.stderr
    assert "test-0-000002: skipped T1" in done.stderr
    told = json.loads(done.stdout)
    assert told["studies"] == 4 and [one["id"] for one in told["left_out"]] == ["test-0-000004"]
    assert told["prompts"] == list(PROMPTS) and told["tokens"] and told["width"] == 16
    cohort = Cohort(tmp_path / "c.parquet")
    assert cohort.ids == [f"test-0-00000{n}" for n in range(4)]
    assert cohort.labels["mass"] == [line["labels"]["mass"] for line in lines[:4]]
    left_out = cohort._column("scans_left_out").to_pylist()
    assert left_out == [0, 0, 1, 0] and dict(cohort.tokens_of([2]))[2].scan_names == ["T2", "FLAIR", "SWI"]
    assert str(tmp_path) not in str(cohort.facts) and cohort.facts.model["name"] == model_folder.name
    other = run(*arguments[:-6], "-p", "a mass", "--device", "cpu")
    assert other.exit_code == 1 and "choose another output, or pass --overwrite" in other.output


def test_ids_that_repeat_are_refused(studies, model_folder, tmp_path):
    """Folders in front would tell them apart, and stay in the file."""
    (studies.parent / "twice.jsonl").write_text(studies.read_text() + studies.read_text().splitlines()[0] + "\n")
    done = run("embed", "-m", model_folder, "-i", studies.parent / "twice.jsonl", "-o", tmp_path / "c.parquet")
    assert done.exit_code == 1 and "1 duplicate ids, e.g. ['test-0-000000']" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_goes_on(studies, model_folder, tmp_path):
    arguments = ["embed", "-m", model_folder, "-i", studies, "--device", "cpu", "--batch-size", "1", "--tokens"]
    assert run(*arguments, "-o", tmp_path / "calm.parquet").exit_code == 0
    code = "import itemized_clip_hf.cohort.embed as e; e.SHARD_SIZE = 1; import itemized_clip_cli; itemized_clip_cli.main()"
    command = [sys.executable, "-c", code, *map(str, arguments), "-o", str(tmp_path / "c.parquet")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        seen = len(list((tmp_path / "c.parquet.parts").glob("part-*")))
        while process.poll() is None and len(list((tmp_path / "c.parquet.parts").glob("part-*"))) <= seen:
            time.sleep(0.005)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
        assert process.returncode in (-9, 130, 0) and "Traceback" not in errors
        if process.returncode == 130:
            assert "c.parquet.parts; run the same command again to go on" in errors
    assert run(*arguments, "-o", tmp_path / "c.parquet").exit_code == 0
    calm, stopped = Cohort(tmp_path / "calm.parquet"), Cohort(tmp_path / "c.parquet")
    assert stopped.ids == calm.ids
    np.testing.assert_array_equal(stopped.embeddings, calm.embeddings)
