"""Arguments that cannot work are told before anything heavy is imported."""

import json
import os
import re
import subprocess
import sys

import pytest

RUNNER = """
import json, sys
from click.testing import CliRunner
from itemized_clip_cli import main
found = []
for arguments in json.loads(sys.stdin.read()):
    result = CliRunner().invoke(main, arguments)
    heavy = sorted({"torch", "transformers", "scipy", "pandas", "datasets"} & set(sys.modules))
    found.append([result.exit_code, result.output, heavy])
    if heavy:
        break
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders and files that exist, by name."""
    root = tmp_path_factory.mktemp("refusals")
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text("{}")
    (root / "calibrated").mkdir()
    for name in ("config.json", "calibration.json"):
        (root / "calibrated" / name).write_text("{}")
    (root / "empty").mkdir()
    (root / "list.jsonl").write_text('{"id": "1", "images": "1.nii.gz", "items": ["a mass"]}\n')
    (root / "vocab.txt").write_text("[PAD]\n")
    (root / "prompts.yaml").write_text("mass: [a: b]\nmass: c")
    (root / "run").mkdir()
    (root / "run" / "model.safetensors").touch()
    (root / "begun" / "checkpoint-5").mkdir(parents=True)
    (root / "begun" / "checkpoint-5" / "config.json").write_text('{"vision_config": {"hidden_size": 96}}')
    (root / "prepared").mkdir()
    (root / "prepared" / "prepare.json").write_text(
        json.dumps({"image": {"domain": "brain-mri", "fit": "slices", "depth": 48, "in_plane_size": 64}})
    )
    (root / "recipe.yaml").write_text("domain: brain-mri\nmodell: {}\n")
    return root


def say(places, line: str) -> list[str]:
    return [word.replace("@", str(places) + os.sep, 1) if word.startswith("@") else word for word in line.split()]


CASES = [
    # verb and arguments (@ stands for the folder of the test), what is said
    ("calibrate -m @model --protocol ct-rate -i @empty --point best", "there is no operating point 'best'"),
    ("calibrate -m @model --protocol rsicd -i @empty", "chooses among classes: only findings"),
    ("calibrate -m @calibrated --protocol ct-rate -i @empty", "is there already: pass --overwrite"),
    ("predict -i @list.jsonl -m @model --point sensitivity=2", "there is no operating point"),
    ("predict -i @list.jsonl -m @modle", r"there is no model folder .*modle \(did you mean .*model\?\)"),
    ("predict -i @list.jsonl -m runs/mine/model", "there is no model folder runs/mine/model"),
    ("predict -i @list.jsonl -m ./model", "there is no model folder"),
    ("predict -i @list.jsonl -m model", "there is no model folder model"),
    (
        "predict -i @list.jsonl -m some-org/some-model",
        "neither a folder nor a model that was downloaded.*HF_HUB_OFFLINE",
    ),
    ("predict -i @list.jsonl -m @empty", "is no model folder: it has no config.json"),
    ("predict -i @list.jsonl -m untrained:banana", "unknown domain 'banana'"),
    ("predict -i @lost.jsonl -m @model", r"there is no file or folder .*lost.jsonl \(did you mean .*list.jsonl\?\)"),
    ("predict -i @list.jsonl -m @model --accept not-rwa", "Did you mean 'not-raw'"),
    ("predict -i @list.jsonl -m @model --device gpu", "there is no device 'gpu'"),
    ("predict -i @list.jsonl -m @model --tokenizer @nowhere.txt", "there is no tokenizer at"),
    ("predict -i @list.jsonl -m @model -o @list.jsonl/scores.csv", "cannot be written: .*list.jsonl is a file"),
    ("predict -i @list.jsonl -m @model --prompts @prompts.yaml", "prompts.yaml.*duplicate key"),
    ("explain -i @lost -m @model", "there is no file or folder"),
    ("explain -i @list.jsonl -m @lost", "there is no model folder"),
    ("embed -i @lost.jsonl -m @model -o @c.parquet", r"there is no file or folder .*lost.jsonl"),
    ("embed -i @list.jsonl -m @model -o @list.jsonl/c.parquet", "cannot be written: .*list.jsonl is a file"),
    ("search @lost.parquet --duplicates", "there is no file or folder"),
    ("search @list.jsonl --text x", "--text needs the model"),
    ("inspect @lost", "there is no file or folder"),
    ("inspect @list.jsonl --domain brain", "unknown domain 'brain'"),
    (
        "evaluate --protocol ct-rat -i @list.jsonl -m @model -o @out.json",
        "no protocol 'ct-rat'.*Did you mean 'ct-rate'",
    ),
    ("evaluate --protocol rsna --variant x -i @list.jsonl -m @model -o @out.json", "no variant 'x'"),
    ("evaluate --protocol rsna -i @lost -m @model -o @out.json", "there is no file or folder"),
    ("evaluate --protocol rsna -i @list.jsonl -m @lost -o @out.json", "there is no model folder"),
    ("evaluate --protocol retrieval -i @list.jsonl -m @model -o @out.json --set mod=fast", r"no settings \['mod'\]"),
    ("evaluate --protocol rsna -i @list.jsonl -m @model -o @out.json --labels @lost.csv", "there is no label table"),
    ("prepare -i @list.jsonl -o @data --domain brain", "unknown domain"),
    ("prepare -i @list.jsonl -o @data --recipe brain", "there is no recipe 'brain'"),
    ("prepare -i @list.jsonl -o @data --recipe chest-ct --domain head-ct", "is for the domain chest-ct"),
    ("prepare -i @list.jsonl -o @list.jsonl/data --domain brain-mri", "is a file"),
    ("train --recipe brain-mrt -i @list.jsonl -o @new", "no recipe 'brain-mrt'.*Did you mean 'brain-mri'"),
    ("train --recipe brain-mri --variant tiyn -i @list.jsonl -o @new", "no variant 'tiyn'.*Did you mean 'tiny'"),
    ("train --recipe @recipe.yaml -i @list.jsonl -o @new", "unknown keys \\['modell'\\] \\(perhaps 'model'"),
    ("train --recipe brain-mri -i @lost -o @new", "there is no file or folder"),
    ("train --recipe brain-mri -i @list.jsonl -o @run", "holds a model already"),
    ("train --recipe brain-mri -i @list.jsonl -o @new -m @lost", "there is no model folder"),
    ("train --recipe brain-mri -i @list.jsonl -o @new --init @lost.pt", "there is no file or folder"),
    ("train --recipe brain-mri -i @list.jsonl -o @new --set max_stpes=5", "perhaps 'max_steps'"),
    ("train --recipe brain-mri -i @list.jsonl -o @new --set model.hiden_size=64", "perhaps 'hidden_size'"),
    ("train --recipe brain-mri -i @list.jsonl -o @new --set text.hiden_size=64", "perhaps 'hidden_size'"),
    ("train --recipe brain-mri -i @list.jsonl -o @new --set image.scan_sise=64", "perhaps 'scan_size'"),
    ("train --recipe brain-mri -i @list.jsonl -o @new --set tokenizer.vocab=64", "perhaps 'vocab_size'"),
    ("train --recipe brain-mri -i @list.jsonl -o @new --set modle.hidden_size=64", "perhaps 'model"),
    ("train --recipe brain-mri -i @list.jsonl -o @new -m @model --set model.hidden_size=64", "shapes a new model"),
    (
        "train --recipe brain-mri -i @list.jsonl -o @begun --resume --set model.hidden_size=64",
        "was begun with 96",
    ),
    ("train --recipe brain-mri -i @prepared -o @new", "prepared for other settings .in_plane_size 64 instead of 256"),
    ("train --recipe chest-ct -i @list.jsonl --eval-data @prepared -o @new", "prepared for other settings .domain"),
    ("convert -i @lost.pt --domain brain-mri -o @new", "there is no file or folder"),
    ("convert -i @vocab.txt --domain brain -o @new", "unknown domain"),
    ("convert -i @vocab.txt --domain brain-mri -o @model", "is not empty"),
    ("itemize -i @lost.csv -o @items.jsonl", "there is no file or folder"),
    ("itemize -i @list.jsonl -o @items.jsonl --domain brain", "unknown domain"),
    ("card -m @lost", "there is no model folder"),
    ("merge -m @model -o @new", "holds no adapters"),
    ("info -m @lost", "there is no model folder"),
]


def test_wrong_arguments_are_told_before_heavy_imports(places):
    lines = [say(places, line) for line, _ in CASES]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "1000"}
    ran = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(lines), env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    for (line, expected), (status, output, heavy) in zip(CASES, found):
        assert status in (1, 2) and re.search(expected, output.replace("\n", " ")), (line, status, output)
        assert not heavy, (line, heavy)
    assert len(found) == len(CASES)
