"""
Every code block of the README and of the cards, run as it stands, in a folder that holds what they name.

Domains and recipes keep their facts but for sizes: architectures, scans and steps are small here.
"""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from sources import source, training_dictionary
from tiny_models import ITEMS

import itemized_clip_hf
from itemized_clip_hf import domains, recipes
from itemized_clip_hf.evaluation.protocols import load_protocol
from itemized_clip_hf.models.tokenizer import train_tokenizer

for package in ("nibabel", "sklearn", "datasets", "matplotlib", "peft"):
    pytest.importorskip(package)

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VIEWING = BLOCK.findall((ROOT / "docs" / "viewing.md").read_text())
README = [(kind, text) for kind, text in BLOCK.findall((ROOT / "README.md").read_text())]
CARDS = {path.stem: BLOCK.findall(path.read_text()) for path in sorted((ROOT / "hub_cards").glob("*.md"))}
VOLUME = {"scan_size": [8, 16, 16]}
SMALL = {
    "brain-mri": {**VOLUME, "in_plane_size": 16},
    "head-ct": {**VOLUME, "in_plane_size": 16},
    "chest-ct": VOLUME,
    "remote-sensing": {"scan_size": [1, 32, 32]},
    "natural-images": {"scan_size": [1, 32, 32]},
}
WORDS = [
    *ITEMS,
    "acute stroke",
    "glioma",
    "Study is unremarkable",
    "airport bareland a dog red car findings consistent with",
]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    tokenizer = train_tokenizer(WORDS, vocab_size=200, context_length=24)
    vocabulary = tokenizer.get_vocab()
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__)))
    return path


@pytest.fixture
def small(tmp_path, monkeypatch, tokenizer_file):
    """Domains and recipes of a few thousand parameters and steps of a few studies."""
    vocabulary = len(tokenizer_file.read_text().splitlines())
    for module, kind in ((domains, "domains"), (recipes, "recipes")):
        (tmp_path / kind).mkdir()
        for path in module._FOLDER.glob("*.yaml"):
            content = yaml.safe_load(path.read_text())
            shrink(content, kind, vocabulary, path.stem)
            (tmp_path / kind / path.name).write_text(yaml.safe_dump(content))
        monkeypatch.setattr(module, "_FOLDER", tmp_path / kind)
    domains._load_shipped.cache_clear()
    yield
    domains._load_shipped.cache_clear()


def shrink(content, kind, vocabulary, name):
    if kind == "recipes":
        content["training"] |= {"max_steps": 2, "save_strategy": "no", "dataloader_num_workers": 0, "bf16": False}
        content["training"] |= {"logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "warmup_steps": 1}
        content["global_batch_size"] = 4
        del content["variants"]["tiny"]  # its patches are made for the sizes of the domains
        return
    content["image"] |= SMALL[name]
    content["text"]["vocabulary"]["size"] = vocabulary
    vision = content["architecture"]["vision_config"]
    scopes = vision["attention_scopes"][:3]
    vision |= {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    vision |= {"image_size": SMALL[name]["scan_size"], "attention_scopes": scopes}
    vision["patch_size"] = [4, 8, 8] if vision["patch_size"][0] > 1 else [1, 8, 8]
    text = content["architecture"]["text_config"]
    text |= {"vocab_size": vocabulary, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 24}
    if text["model_type"] == "clip_text_model":
        text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    content["architecture"] |= {"projection_dim": 16, "num_pooler_heads": 2}


def write_model(folder: Path, domain: str, tokenizer_file: Path) -> None:
    from itemized_clip_hf.models.load import build_untrained
    from itemized_clip_hf.models.tokenizer import load_tokenizer

    model, processor = build_untrained(domain, load_tokenizer(tokenizer_file, 24))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_scan(path: Path, ct: bool = False) -> None:
    """A head or body in air, 130 to 300 mm wide."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(abs(hash(path.name)) % 1000).normal(0, 20, (40, 44, 36))
    body = np.zeros(noise.shape)
    body[6:34, 6:38, 2:34] = 1
    array = (body * 1030 - 1000 + noise) if ct else np.abs(body * 400 + noise)
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.diag([-5.0, -5.0, 5.0, 1.0])), path)


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)


def write_table(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def readme_folder(tmp_path, small, tokenizer_file, monkeypatch):
    """All that the README's blocks name."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "vocab.txt").write_text(tokenizer_file.read_text())
    for domain, name in (
        ("brain-mri", "demo-output/model"),
        ("chest-ct", "chest-ct-model"),
        ("natural-images", "natural-images-model"),
    ):
        write_model(folder / name, domain, tokenizer_file)
    for name in ("T1", "FLAIR"):
        write_scan(folder / "demo-output" / "study" / f"{name}.nii.gz")
        write_scan(folder / "demo-output" / "studies" / "d0" / f"{name}.nii.gz")
    images = {name: f"study/{name}.nii.gz" for name in ("T1", "FLAIR")}
    lines = [json.dumps({"id": f"d{n}", "images": images, "items": ITEMS[:3]}) for n in range(3)]
    (folder / "demo-output" / "studies.jsonl").write_text("\n".join(lines))
    ids = [f"s{n}" for n in range(8)]
    for study in ids:
        write_scan(folder / "studies" / study / "AX_T1.nii.gz")
    write_table(
        folder / "reports.csv",
        [["id", "report"], *([study, "Left frontal mass. Enlarged ventricles."] for study in ids)],
    )
    names = load_protocol("ct-rate").names
    volumes = [f"valid_{n}_a_1" for n in range(1, 5)]
    for volume in volumes:
        write_scan(folder / "ct_rate" / "dataset" / "valid" / f"{volume}.nii.gz", ct=True)
    table = [[f"{volume}.nii.gz", *([number % 2] * len(names))] for number, volume in enumerate(volumes)]
    write_table(
        folder / "ct_rate" / "multi_abnormality_labels" / "valid_predicted_labels.csv", [["VolumeName", *names], *table]
    )
    classes = load_protocol("pub-brain-5").names
    for study in range(10):
        write_scan(folder / "pub_brain_5" / "images" / f"sub-{study}" / "T1.nii.gz")
    rows = [[f"sub-{n}", *np.eye(5, dtype=int)[n % 5]] for n in range(10)]
    for file in ("pub_brain_5.csv", "pub_brain_5_gt.csv"):
        write_table(folder / "pub_brain_5" / file, [["study", *map(str.lower, classes)], *rows])
    (folder / "own.yaml").write_text("findings: {mass: left frontal mass, bleed: small bleed}\ndomain: brain-mri\n")
    write_table(
        folder / "labels.csv", [["id", "mass", "bleed"], *([study, n % 2, n // 4] for n, study in enumerate(ids))]
    )
    for number in range(3):
        write_picture(folder / "val2017" / f"{number}.jpg")
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    captions = [{"id": n, "image_id": n // 2, "caption": WORDS[n]} for n in range(6)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    lines = [{"id": s, "images": {"T1": f"studies/{s}/AX_T1.nii.gz"}, "items": ITEMS[:2]} for s in ids]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for file in ("checkpoint.pt", "hlip.pt"):
        torch.save(training_dictionary(authors_state("brain-mri", tokenizer_file)), folder / file)
    return folder


def authors_state(domain: str, tokenizer_file: Path) -> dict:
    """Keys and shapes of the authors' layout in the domain's small size: the converter's key map, read the other way round."""
    state, _, _ = source("names")
    architecture = domains.load_domain(domain).architecture
    text, width = architecture["text_config"], architecture["vision_config"]["hidden_size"]
    model = itemized_clip_hf.ItemizedCLIPModel(itemized_clip_hf.ItemizedCLIPConfig(domain=domain, **architecture))
    from itemized_clip_hf.conversion import radiology
    from itemized_clip_hf.conversion.checkpoint import Keys

    keys = Keys(expand(state, model, text["num_hidden_layers"]))
    radiology.map_keys(keys)
    own = model.state_dict()
    found = {}
    for source_name, target in keys.table.items():
        parts = [own[target.replace("{q,k,v}", part)] for part in ("qkv" if "{" in target else "q")]
        tensor = torch.cat(parts)
        found[source_name] = {
            "visual.trunk.cls_token": lambda t: t.view(1, 1, width),
            "visual.trunk.spatial_posemb": lambda t: t[None],
        }.get(source_name, lambda t: t)(tensor).clone()
    return found


def expand(state, model, text_layers):
    """Names of a recorded state dict, for as many layers as the model has."""
    vision = len(model.vision_model.encoder.layers)
    kept = {}
    for name, tensor in state.items():
        match = re.match(r"(visual\.trunk\.blocks\.|text\.transformer\.encoder\.layer\.)0\.(.+)", name)
        if match:
            layers = vision if "trunk" in match[1] else text_layers
            kept |= {f"{match[1]}{layer}.{match[2]}": tensor for layer in range(layers)}
        elif "serienameencoder.transformer.layers." in name:
            kept |= {re.sub(r"layers\.\d+", f"layers.{layer}", name): tensor for layer in range(3)}
        elif not re.match(r"visual\.trunk\.blocks\.|text\.transformer\.encoder\.layer\.", name):
            kept[name] = tensor
    return kept


def commands_of(block: str) -> list[list[str]]:
    joined = block.replace("\\\n", " ")
    return [words for line in joined.splitlines() if (words := shlex.split(line, comments=True))]


def run_command(words: list[str]) -> str:
    from itemized_clip_cli import main

    result = CliRunner().invoke(main, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, f"{' '.join(words)}: {result.output[-1500:]}"
    return result.output


def test_every_block_of_the_readme(readme_folder, monkeypatch):
    """In the order of the page: what one block makes, a later one uses."""
    monkeypatch.setenv("ITEMIZED_CLIP_TRACEBACK", "1")
    monkeypatch.setattr(
        "itemized_clip_hf.hub.push.run_load_test", lambda folder: None
    )  # processes know no small domains
    monkeypatch.setattr("itemized_clip_hf.app.serve.serve", lambda *_: None)  # it would wait for visitors
    kinds = []
    names: dict = {}
    for kind, text in README:
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, "README.md", "exec"), names)
        elif kind == "json":
            assert {"id", "images", "items"} <= set(json.loads(text))
        else:
            for words in commands_of(text):
                run_line(words)
    assert set(kinds) == {"bash", "python", "json"}
    assert {"README.md", "card.yaml", "model.safetensors"} <= {path.name for path in Path("brain-mri-model").iterdir()}
    assert json.loads(Path("out/ct-rate.json").read_text())["headline"]["value"] is not None
    assert any(Path("maps").rglob("*.nii.gz")) and Path("merged-model/config.json").exists()


def test_every_block_of_viewing(readme_folder, monkeypatch, tokenizer_file):
    monkeypatch.setattr("itemized_clip_hf.app.serve.serve", lambda *_: None)
    write_model(readme_folder / "org" / "itemizedclip-brain-mri", "brain-mri", tokenizer_file)
    names: dict = {}
    for kind, text in VIEWING:
        if kind == "python":
            exec(compile(text, "viewing.md", "exec"), names)
        else:
            for words in commands_of(text):
                run_line(words)
    told = json.loads(next(Path("maps").rglob("result.json")).read_text())
    for key in re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "viewing.md").read_text(), re.MULTILINE):
        assert set(key.split("`, `")) <= set(told), key
    assert Path("report.html").stat().st_size > 2_000_000 and Path("my-space/app.py").exists()


def run_line(words: list[str]) -> None:
    if words[0] == "make":  # the targets exist; CI runs them
        subprocess.run(["make", "-n", "-C", str(ROOT), *words[1:]], check=True, capture_output=True)
    elif words[:2] == ["pip", "install"]:
        assert extras_of(words) <= available_extras()
    else:
        assert words[0] == "itemized-clip", words
        run_command([word.replace("batch_size=64", "batch_size=4") for word in words])  # there are eight studies


def extras_of(words: list[str]) -> set[str]:
    return {extra for word in words for extra in re.findall(r"\[([\w,-]+)\]", word) for extra in extra.split(",")}


def available_extras() -> set[str]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib")
    import tomllib

    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_every_extra_that_messages_name_exists():
    text = (
        "".join(path.read_text() for path in (ROOT / "itemized_clip_hf").rglob("*.py"))
        + (ROOT / "README.md").read_text()
    )
    named = {extra for found in re.findall(r"itemized-clip-hf\[([\w,-]+)\]", text) for extra in found.split(",")}
    assert named and named <= available_extras()


@pytest.mark.parametrize("name", CARDS)
def test_every_block_of_a_card(name, tmp_path, small, tokenizer_file, monkeypatch, capsys):
    """The example of a card, with a model of its name in the folder."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    domain = name.removeprefix("itemizedclip-")
    write_model(place / "org" / name, domain, tokenizer_file)
    for scan in ("AX_T2", "AX_FLAIR"):
        write_scan(place / "study" / f"{scan}.nii.gz")
    for scan in ("AX_HEAD", "chest"):
        write_scan(place / "study" / f"{scan}.nii.gz", ct=True)
    write_picture(place / "picture.jpg")
    kinds = []
    for kind, text in CARDS[name]:
        kinds.append(kind)
        if kind == "python":
            exec(compile(text, f"{name}.md", "exec"), {})
            printed = capsys.readouterr().out.strip().splitlines()
            assert len(printed) == 2 and all(abs(float(line.split()[-1])) <= 1 for line in printed)
        else:
            assert kind == "bibtex" and re.match(r"@\w+\{\w+,", text)
    assert kinds == ["python", "bibtex"]
