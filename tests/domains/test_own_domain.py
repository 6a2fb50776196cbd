"""A domain is one file, also one of the user's own: named by its path, known everywhere, and part of the model folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from itemized_clip_hf import ItemizedCLIPImageProcessor, ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.data.checks import check_scan, check_study
from itemized_clip_hf.data.study import Scan, Study
from itemized_clip_hf.domains import DOMAIN_FILE, OWN_DOMAINS, Domain, available_domains, load_domain, shipped_domains
from itemized_clip_hf.hub.card import CardFacts, card_text
from itemized_clip_hf.models.load import load
from itemized_clip_hf.recipes import load_recipe
from itemized_clip_hf.trainer.run import train_recipe

KNEE = """
base: brain-mri
title: Knee MRI
coverage: {across: [60, 250], head_to_foot: [80, 300]}
expected_series: {PD: [pd, proton]}
example: '{"SAG_PD": "study/SAG_PD.nii.gz"}'
image: {scan_size: [8, 16, 16], in_plane_size: 16}
text: {context_length: 24}
normal_rule: {only_item: [normal knee]}
labels: {ACL tear: torn anterior cruciate ligament, Effusion: joint effusion}
"""
RECIPE = """
domain: knee-mri.yaml
model:
  projection_dim: 16
  num_pooler_heads: 2
  vision_config: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32, image_size: [8, 16, 16],
    patch_size: [4, 8, 8], attention_scopes: [scan, study], scan_name_hidden_size: 32, scan_name_num_layers: 1,
    scan_name_num_heads: 2, scan_name_intermediate_size: 32}
  text_config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16,
    max_position_embeddings: 24}
tokenizer: {vocab_size: 120, context_length: 24}
training: {max_steps: 2, per_device_train_batch_size: 4, save_strategy: "no", report_to: none, use_cpu: true}
"""


@pytest.fixture
def knee(tmp_path, monkeypatch):
    """The file, as only this test knows it."""
    monkeypatch.setenv(OWN_DOMAINS, "")
    path = tmp_path / "my" / "knee-mri.yaml"
    path.parent.mkdir()
    path.write_text(KNEE)
    return path


def scan(millimeters: float = 10.0, shift: float = 0.0) -> Scan:
    array = np.random.default_rng(0).gamma(2.0, 100.0, (16, 16, 16)).astype(np.float32) - shift
    return Scan(array, np.diag([millimeters] * 3 + [1.0]), "SAG_PD", modality="MR")


def test_a_domain_is_one_file(knee, tokenizer):
    domain = load_domain(knee)
    assert domain.name == "knee-mri" and domain.image["fit"] == "slices" and domain.image["scan_size"] == [8, 16, 16]
    assert "knee-mri" in available_domains() and "knee-mri" not in shipped_domains()
    assert list(domain.prompts) == ["ACL tear", "Effusion"] and domain.objective == load_domain("brain-mri").objective
    assert load_domain("knee-mri") == domain and domain.is_normal(["Normal knee."])
    processor = ItemizedCLIPProcessor.from_domain(str(knee), tokenizer)
    assert processor.image_processor.domain == "knee-mri" and processor.tokenizer.model_max_length == 24
    assert ItemizedCLIPImageProcessor.from_domain("knee-mri").scan_size == [8, 16, 16]

    text = card_text(CardFacts(name="org/knee", domain="knee-mri", license="mit"))
    assert "SAG_PD" in text and "torn anterior cruciate ligament" in text and "not-a-medical-device" in text

    codes = [problem.code for problem in check_scan(scan(), "knee-mri").problems]
    assert "coverage" not in codes and "coverage" in [p.code for p in check_scan(scan(), "chest-ct").problems]
    assert "coverage" in [p.code for p in check_scan(scan(3.0), str(knee)).problems]
    assert [p.code for p in check_scan(scan(shift=900), "knee-mri").problems if p.level == "refuse"] == ["not-raw"]
    reports = check_study(Study({"SAG_PD": scan()}), "knee-mri")
    assert not any(problem.code == "missing-series" for report in reports for problem in report.problems)


@pytest.mark.slow  # a process that knows nothing but the folder
def test_it_is_known_in_processes_that_start_later(knee):
    load_domain(knee)
    code = "from itemized_clip_hf.domains import load_domain; print(load_domain('knee-mri').title)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "Knee MRI"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("knee.yaml", "base: brain-mri\nknee: 1\n", "unknown keys .*knee"),
        ("knee.yaml", "title: Knee\n", "lacks"),
        ("knee.yaml", "base: brian-mri\n", "there is no domain 'brian-mri'.*Did you mean 'brain-mri'"),
        ("knee.yaml", "base: knee.yaml\n", "starts from itself"),
        ("knee.yaml", "base: brain-mri\nmodality: US\n", "modality is 'US'.*expected"),
        (
            "knee.yaml",
            "base: brain-mri\ncoverage: {across: [100, 20], head_to_foot: [1, 2]}\n",
            "across is .*lower limit",
        ),
        ("knee.yaml", "base: brain-mri\nimage: {scan_size: [8, 16]}\n", "scan_size"),
        ("brain-mri.yaml", "base: brain-mri\ntitle: Other\n", "give yours another name"),
    ],
)
def test_what_is_wrong_is_named(name, text, said, tmp_path, monkeypatch):
    monkeypatch.setenv(OWN_DOMAINS, "")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        load_domain(tmp_path / name)
    assert available_domains() == shipped_domains()


def test_two_files_of_one_name_are_told_apart(knee, tmp_path):
    load_domain(knee)
    (tmp_path / "knee-mri.yaml").write_text(KNEE)
    assert load_domain(tmp_path / "knee-mri.yaml") == load_domain(knee)
    (tmp_path / "knee-mri.yaml").write_text(KNEE.replace("Knee MRI", "Another knee"))
    with pytest.raises(ValueError, match="say different things of a domain 'knee-mri'"):
        load_domain(tmp_path / "knee-mri.yaml")
    with pytest.raises(ValueError, match="no domain file"):
        load_domain(tmp_path / "elbow.yaml")


def test_from_a_file_to_scores(knee, tmp_path, monkeypatch, write_volume):
    """Recipe and domain in one folder; the trained folder brings its domain, wherever the user's file has gone."""
    (knee.parent / "recipe.yaml").write_text(RECIPE)
    affine = np.diag([9.0, 9.0, 9.0, 1.0])
    volumes = [write_volume(f"study{n}/SAG_PD.nii.gz", shape=(12, 12, 12), affine=affine, seed=n) for n in range(4)]
    rows = [{"id": f"s{n}", "images": str(v.parent), "items": ["joint effusion"]} for n, v in enumerate(volumes)]
    data = tmp_path / "list.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    recipe = load_recipe(str(knee.parent / "recipe.yaml"))
    assert recipe.domain == "knee-mri"
    model_folder = tmp_path / "model"
    train_recipe(recipe, data, model_folder)
    assert json.loads((model_folder / DOMAIN_FILE).read_text())["name"] == "knee-mri"

    monkeypatch.setenv(OWN_DOMAINS, "")
    knee.unlink()
    model, processor = load(model_folder)
    assert isinstance(model, ItemizedCLIPModel) and model.config.domain == "knee-mri"
    assert load_domain("knee-mri").prompts["ACL tear"] == ["torn anterior cruciate ligament"]
    assert processor(images=str(volumes[0].parent))["pixel_values"].shape == (1, 1, 1, 8, 16, 16)


def test_the_shell_takes_the_file(knee, write_volume):
    from itemized_clip_cli import main

    volume = write_volume("SAG_PD.nii.gz", shape=(12, 12, 12), affine=np.diag([3.0, 3.0, 3.0, 1.0]))
    told = CliRunner().invoke(main, ["inspect", "-i", str(volume), "--domain", str(knee), "--json"])
    assert "unusual for knee-mri" in told.output, told.output


def test_the_page_about_domains(tmp_path, monkeypatch):
    """Its example is a domain, and its table names every key."""
    page = (Path(__file__).parents[2] / "docs" / "domains.md").read_text()
    monkeypatch.setenv(OWN_DOMAINS, "")
    (tmp_path / "knee-mri.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    assert load_domain(tmp_path / "knee-mri.yaml").expected_series == {"PD": ["pd", "proton"], "T2": ["t2"]}
    assert set(Domain.__dataclass_fields__) == set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.M)))
    )
