"""Models of the Hub at a revision, from Python and from the shell; folders whose names hold an '@' stay folders."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from loopback_hub import LoopbackHub, Repo, StoredFile

from itemized_clip_hf import ItemizedCLIPModel
from itemized_clip_hf.models.load import load, load_model, split_revision

NAME = "org/tiny"


def test_names_with_and_without_a_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_revision("org/name@v1.0") == ("org/name", "v1.0")
    assert split_revision("org/name@refs/pr/1") == ("org/name", "refs/pr/1")
    assert split_revision("org/name", "v1") == ("org/name", "v1") == split_revision("org/name@v1", "v1")
    assert split_revision("org/name") == ("org/name", None)
    (tmp_path / "org" / "name@v1.0").mkdir(parents=True)
    assert split_revision("org/name@v1.0") == ("org/name@v1.0", None)
    for name, revision, message in (
        ("org/name@", None, "expected ORG/NAME@REVISION"),
        ("@v1", None, "expected ORG/NAME@REVISION"),
        ("org/name@v1", "v2", "two revisions"),
        ("org/name@v1.0", "v2", "not a model of the Hub"),
        ("untrained:brain-mri", "v2", "not a model of the Hub"),
    ):
        with pytest.raises(ValueError, match=message):
            split_revision(name, revision)


def test_a_folder_with_an_at_sign(model_folder, tmp_path):
    folder = tmp_path / "model@best"
    shutil.copytree(model_folder, folder)
    assert load(folder, "cpu")[0].num_parameters() == load(model_folder, "cpu")[0].num_parameters()
    with pytest.raises(ValueError, match="no revision 'v1'"):
        load(folder, "cpu", revision="v1")


@pytest.fixture
def two_commits(model_folder, tmp_path):
    """A model on the Hub whose second commit has other weights."""
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    model = load_model(str(model_folder))
    with torch.no_grad():
        model.logit_bias += 1
    model.save_pretrained(other)
    repo = Repo(private=False)
    for folder in (model_folder, other):
        files = {path.name: StoredFile(path.name, path.read_bytes()) for path in folder.iterdir() if path.is_file()}
        repo.record(files, f"commit of {folder.name}")
    return repo, [float(ItemizedCLIPModel.from_pretrained(folder).logit_bias) for folder in (model_folder, other)]


CODE = """
import sys
from itemized_clip_hf.models.load import load, say_origin
first, name = sys.argv[1:]
print(float(load(name, "cpu")[0].logit_bias.detach()), float(load(name, "cpu", revision=first)[0].logit_bias.detach()))
model = load(f"{name}@{first}", "cpu")[0]
told = say_origin(f"{name}@{first}")
print(float(model.logit_bias.detach()), told == {"name": name, "revision": first, "commit": first})
"""


@pytest.mark.slow  # names are looked at above; this loads two commits in processes of their own
def test_revisions_by_name(two_commits, model_folder, write_volume, tmp_path):
    repo, (old, new) = two_commits
    scan = write_volume("study/AX_T1.nii.gz")
    with LoopbackHub() as hub:
        hub.repos[NAME] = repo
        environment = {**os.environ, **hub.environment(tmp_path / "cache", signed_in=False)}

        def run(*command):
            return subprocess.run(
                [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=200
            )

        done = run("-c", CODE, repo.commits[0], NAME)
        assert done.stdout.split() == [str(new), str(old), str(old), "True"], done.stderr[-2000:]
        asked = f"{NAME}@{repo.commits[0]}"
        told = run("-m", "itemized_clip_cli", "predict", "-m", asked, "-i", str(scan), "-p", "mass", "--json")
        assert json.loads(told.stdout)["model"] == {
            "name": NAME,
            "revision": repo.commits[0],
            "commit": repo.commits[0],
        }, told.stderr
        wrong = run("-m", "itemized_clip_cli", "info", "-m", f"{NAME}@nowhere")
        assert wrong.returncode == 1 and "nowhere" in wrong.stderr and "Traceback" not in wrong.stderr
