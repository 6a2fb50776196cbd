"""Verbs that are stopped, killed or short of room: the next run ends as an undisturbed one, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forked import MAIN, run_forked
from tiny_models import ITEMS

nibabel = pytest.importorskip("nibabel")
SLOW = partial(pytest.param, marks=pytest.mark.slow)
HURT = """
import os, signal, sys, time
import {module} as place
import itemized_clip_cli
original, calls = place.{name}, []
def stopped(*arguments, **named):
    calls.append(1)
    if len(calls) == {calls}:
        os.kill(os.getpid(), {signal}); time.sleep(5)
    return original(*arguments, **named)
place.{name} = stopped
itemized_clip_cli.main()
"""


def verb(*arguments, code=MAIN, **environment):
    if not environment:
        return run_forked(*arguments, check=False, code=code)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    for number in range(4):
        (folder / f"s{number}").mkdir()
        image = nibabel.Nifti1Image(rng.normal(100, 30, (20, 24, 10)).astype(np.float32), np.diag([-2.0, 2, 6, 1]))
        nibabel.save(image, folder / f"s{number}" / "AX_T1.nii.gz")
    labels = [1, 0, -1, None]
    rows = [
        {"id": f"s{n}", "images": {"AX_T1": f"s{n}/AX_T1.nii.gz"}, "labels": {ITEMS[0]: labels[n]}} for n in range(4)
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), SLOW(signal.SIGTERM, 143), SLOW(signal.SIGKILL, -9)])
def test_predict_goes_on(model_folder, studies, tmp_path, number, status):
    arguments = ["predict", "-m", model_folder, "-i", studies / "list.jsonl", "-p", ITEMS[0], "--batch-size", "1"]
    calm = verb(*arguments, "-o", tmp_path / "calm" / "o.csv")
    assert calm.returncode == 0 and "2 of 4 studies left out" in calm.stderr, calm.stderr
    code = HURT.format(module="itemized_clip_hf.cli._studies", name="read_file", calls=3, signal=int(number))
    stopped = verb(*arguments, "-o", tmp_path / "out" / "o.csv", code=code)
    assert stopped.returncode == status and "Traceback" not in stopped.stderr, stopped.stderr
    kept = tmp_path / "out" / "o.csv.scores.jsonl"
    assert [json.loads(line)["id"] for line in kept.read_text().splitlines()[1:]] == ["s0", "s1"]
    assert not (tmp_path / "out" / "o.csv").exists()
    if status > 0:
        assert f"what is written so far is in {kept}; run the same command again to go on." in stopped.stderr
    again = verb(*arguments, "-o", tmp_path / "out" / "o.csv")
    assert again.returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "calm")


@pytest.mark.slow
def test_explain_goes_on(model_folder, studies, tmp_path):
    arguments = ["explain", "-m", model_folder, "-i", studies, "-p", ITEMS[0]]
    assert verb(*arguments, "-o", tmp_path / "calm").returncode == 0
    code = HURT.format(module="itemized_clip_hf.explain.plots", name="plot_item", calls=2, signal=int(signal.SIGTERM))
    stopped = verb(*arguments, "-o", tmp_path / "out", code=code)
    assert stopped.returncode == 143 and "Traceback" not in stopped.stderr
    before = (tmp_path / "out" / "s0" / "maps.json").stat().st_mtime_ns
    assert verb(*arguments, "-o", tmp_path / "out").returncode == 0
    assert (tmp_path / "out" / "s0" / "maps.json").stat().st_mtime_ns == before
    assert set(files_of(tmp_path / "out")) == set(files_of(tmp_path / "calm"))
    told = json.loads((tmp_path / "out" / "s0" / "maps.json").read_text())
    assert told["id"] == "s0" and (tmp_path / "out" / "s0" / told["maps"][0]["file"]).exists()


@pytest.mark.slow
def test_prepare_hears_ctrl_c_once(studies, tmp_path):
    with (tmp_path / "reports.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": f"s{n}", "items": [ITEMS[n]]}) + "\n" for n in range(4))
    arguments = ["prepare", "-i", studies, "--reports", tmp_path / "reports.jsonl", "--domain", "brain-mri", "--json"]
    arguments += ["--shard-size", "1"]
    command = [sys.executable, "-m", "itemized_clip_cli", *map(str, arguments), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    parts = tmp_path / "out" / ".parts"
    while not list(parts.glob("part-*.arrow")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors and "leaked" not in errors, errors  # semaphores
    assert "run the same command again to go on" in errors
    assert not [path for path in parts.iterdir() if not path.name.startswith(("part-", "plan.json"))]
    assert verb(*arguments, "-o", tmp_path / "out").returncode == 0
    assert verb(*arguments, "-o", tmp_path / "calm").returncode == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "calm")


def test_no_room(model_folder, studies, tmp_path):
    code = (
        "import resource, itemized_clip_cli, itemized_clip_hf.cli._scores\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); itemized_clip_cli.main()"
    )
    arguments = ["predict", "-m", model_folder, "-i", studies, "-p", ITEMS[0], "-o", tmp_path / "o.csv"]
    full = verb(*arguments, code=code)
    assert full.returncode == 1 and "no room left to write" in full.stderr and "Traceback" not in full.stderr, (
        full.stderr
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_labels_that_are_none_lose_no_scores(model_folder, studies, tmp_path):
    lines = [json.loads(line) for line in (studies / "list.jsonl").read_text().splitlines()]
    lines[0]["labels"] = {ITEMS[0]: "maybe"}
    (studies / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    done = verb(
        "predict", "-m", model_folder, "-i", studies / "bad.jsonl", "-p", ITEMS[0], "-o", tmp_path / "o.csv", "--json"
    )
    results = json.loads(done.stdout)["results"]
    assert done.returncode == 1 and "s0" in done.stderr and "'maybe'" in done.stderr
    assert ["scores" in row for row in results] == [False, True, True, True]
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 5


def test_inputs_of_one_name_are_told_apart(studies, tmp_path):
    from itemized_clip_hf.cli._studies import Inputs, tell_apart

    for place in ("za", "zb", "zb/inner"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "dicom.zip").write_bytes(b"PK\5\6" + bytes(18))
    inputs = Inputs(tuple(str(tmp_path / place / "dicom.zip") for place in ("za", "zb", "zb/inner")))
    assert inputs.ids == ["za/dicom", "zb/dicom", "inner/dicom"]
    twice = Inputs((str(tmp_path / "za" / "dicom.zip"),) * 2)
    assert len(set(twice.ids)) == 2 and twice.ids[1].endswith("dicom (2)")
    lists = Inputs((str(studies / "list.jsonl"), str(studies / "s0")))
    assert lists.ids == ["list/s0", "s1", "s2", "s3", f"{studies.name}/s0"]
    assert tell_apart([("a", ()), ("a", ()), ("a (2)", ())]) == ["a", "a (3)", "a (2)"]
