"""A checkpoint -> folder -> the Hub (on loopback) -> by name in other processes, with the package and without."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from golden_cases import case
from loopback_hub import LoopbackHub
from sources import source, tokenizer_of_size, training_dictionary
from tiny_models import SUPPORT

from itemized_clip_hf import ItemizedCLIPProcessor, ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments
from itemized_clip_hf.conversion.folder import convert_folder
from itemized_clip_hf.hub.card import CardFacts, facts_of_folder, write_card
from itemized_clip_hf.hub.push import choose_files, compose_card, find_patient_data, push_folder, study_ids

NAME = "org/itemizedclip-tiny"
CARDS = sorted((Path(__file__).parents[2] / "hub_cards").glob("*.md"))

BY_NAME = """
import sys
name, mode, place = sys.argv[1:]
if mode == "folder":
    import importlib.abc
    class Hidden(importlib.abc.MetaPathFinder):
        def find_spec(self, module, path=None, target=None):
            if module.split(".")[0] == "itemized_clip_hf":
                raise ModuleNotFoundError(module)
    sys.meta_path.insert(0, Hidden())
else:
    import itemized_clip_hf
import torch
from transformers import AutoModel, AutoProcessor
trust = {"trust_remote_code": True} if mode == "folder" else {}
model = AutoModel.from_pretrained(name, **trust).eval()
processor = AutoProcessor.from_pretrained(name, **trust)
assert type(processor).__name__ == "ItemizedCLIPProcessor"
assert ("itemized_clip_hf" in sys.modules) == (mode == "package")
inputs = torch.load(place + "/inputs.pt")
with torch.no_grad():
    image = model.get_image_features(inputs["images"])
    texts = model.get_text_features(inputs["ids"], (inputs["ids"] != 0).long()).pooler_output
    tokens = torch.nn.functional.normalize(model.visual_projection(image.last_hidden_state), dim=-1)
    logits = model.score_items(torch.nn.functional.normalize(texts, dim=-1), tokens)
torch.save((logits, image.pooler_output, tokens), place + "/outputs.pt")
"""


@pytest.fixture
def folder(tmp_path):
    state, domain, config = source("pictures")
    torch.save(training_dictionary(state), tmp_path / "epoch_60.pt")
    tokenizer = tokenizer_of_size(config.text_config.vocab_size)
    convert_folder(tmp_path / "epoch_60.pt", domain, tmp_path / "model", tokenizer, config, accept=["other-vocabulary"])
    return tmp_path / "model"


def run(command, environment):
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)


def test_from_the_golden_checkpoint_to_golden_logits_by_name(folder, tmp_path):
    _, io, _ = case("model2d_tiny")
    torch.save({"images": io["in.images"], "ids": io["in.token_ids"]}, tmp_path / "inputs.pt")
    (folder / "quarantine.csv").write_text("study,reason\nJOHN_DOE_1950,unreadable\n")
    (folder / "training_args.bin").write_bytes(b"pickled")
    with LoopbackHub() as hub:
        command = [
            sys.executable,
            "-m",
            "itemized_clip_cli",
            "push",
            str(folder),
            NAME,
            "--license",
            "cc-by-nc-4.0",
            "--private",
            "--json",
        ]
        done = run(command, hub.environment(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr[-2000:]
        pushed = json.loads(done.stdout)
        files = hub.repos[NAME].files
        assert hub.repos[NAME].private and set(pushed["files"]) == set(files) - {".gitattributes"}
        assert pushed["left_out"] == ["quarantine.csv", "training_args.bin"]
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert b"license: cc-by-nc-4.0" in files["README.md"] and NAME.encode() in files["README.md"]
        for mode in ("package", "folder"):
            environment = hub.environment(tmp_path / f"cache-{mode}")
            done = run([sys.executable, "-c", BY_NAME, NAME, mode, str(tmp_path)], environment)
            assert done.returncode == 0, done.stderr[-2000:]
            logits, embeds, _ = torch.load(tmp_path / "outputs.pt")
            torch.testing.assert_close(logits, io["out.infer.logits"], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(embeds, io["out.image_features"], atol=1e-4, rtol=1e-4)
        with pytest.raises(HTTPError, match="401"):  # private: not there without the token
            urlopen(f"{hub.endpoint}/{NAME}/resolve/main/config.json")
        # what is cached loads without the hub
        offline = {
            **hub.environment(tmp_path / "cache-package"),
            "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": "http://127.0.0.1:9",
        }
        done = run([sys.executable, "-c", BY_NAME, NAME, "package", str(tmp_path)], offline)
        assert done.returncode == 0, done.stderr[-2000:]


def test_refused_without_a_licence(folder):
    with pytest.raises(ValueError, match="the weights have no licence: pass --license"):
        push_folder(folder, NAME, dry_run=True)
    with pytest.raises(ValueError, match="`other` needs license_name"):
        push_folder(folder, NAME, dry_run=True, license="other")
    facts = facts_of_folder(folder)
    write_card(folder, facts)
    assert "has not been stated" in (folder / "README.md").read_text()
    facts.license, facts.license_name, facts.license_link = "other", "Data use agreement", "https://example.org/terms"
    facts.write(folder / "card.yaml")
    _, text = compose_card(folder, NAME)
    assert (
        "Weights: Data use agreement. <https://example.org/terms>" in text
        and "licence of these weights has not" not in text
    )


def test_a_dry_run_writes_nothing(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = push_folder(folder, NAME, dry_run=True, license="mit", test=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {"README.md", "card.yaml", "config.json", "model.safetensors"} < set(result["files"]) and result[
        "url"
    ] is None


def test_an_edited_card_has_to_state_the_licence(folder):
    write_card(folder, CardFacts(name=NAME, domain="remote-sensing", license="mit"))
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "\nOur own words.\n")
    assert "Our own words." in compose_card(folder, NAME)[1]
    with pytest.raises(ValueError, match="states the licence 'mit', not 'cc-by-4.0'"):
        compose_card(folder, NAME, "cc-by-4.0")


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Example: scanned on 2019-03-04.", "a date"),
        ("Scanned 4 March 2019 at night", "a date"),
        ("Series 1.2.840.113619.2.55.3.604688119", "a DICOM identifier"),
        ("Patient 8837465 had a mass", "a long number"),
        ("Write to jane.doe@hospital.org", "an e-mail address"),
        ("PatientName: DOE^JANE", "a header field of a patient"),
        ("MRN: 44-21", "a header field of a patient"),
        ("PatientName Mustermann", "a header field of a patient"),
        ("patient's name: E. M.", "a header field of a patient"),
        ("A case of Mustermann^Erika", "a patient's name"),
        ("MRN 12345", "a patient's number"),
        ("SSN 123-45-6789", "a patient's number"),
        ("geb. 03.04.65", "a birthday"),
        ("Born on 3/4/65", "a birthday"),
        ("Erika Mustermann, 54 years", "a name and an age"),
        ("J. Müller, seen by Jörg Müller (7 yo)", "a name and an age"),
        ("Data at /home/jane/studies", "somebody's folder"),
        ("The worst one was STUDY_0042 by far", "the id of a study"),
    ],
)
def test_refused_with_patient_data(folder, line, kind):
    (folder / "quarantine.csv").write_text("study,reason\nSTUDY_0042,unreadable\n")
    write_card(folder, CardFacts(name=NAME, domain="remote-sensing", license="mit"))
    readme = folder / "README.md"
    readme.write_text(f"{readme.read_text()}\n{line}\n")
    with pytest.raises(ValueError, match="there may be patient data: README.md, line") as refused:
        push_folder(folder, NAME, dry_run=True, test=False)
    assert kind in str(refused.value) and line not in str(refused.value)
    assert line in readme.read_text(), "an edited card was replaced"


def test_ids_in_other_files(folder):
    (folder / "run.scores.jsonl").write_text('{"about": {}}\n{"id": "CASE-77", "scores": [0.1]}\n')
    CardFacts(name=NAME, domain="remote-sensing", population="as in CASE-77").write(folder / "card.yaml")
    with pytest.raises(ValueError, match="card.yaml, line [0-9]+: the id of a study"):
        push_folder(folder, NAME, dry_run=True, license="mit", test=False)


def test_honest_cards_pass():
    """What cards are full of: hashes, versions, counts, dates in names and addresses."""
    lines = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    lines += [
        "| steps | 1,000,000 |",
        "| seconds | 1,209,600 |",
        "| seed | 20,240,131 |",
        "torch 2.13.0, transformers 5.23.0",
        "PatientName and PatientID never leave the reader; accession numbers are removed",
        "adults of 18 to 90 years, median age 54 years, Johns Hopkins Hospital, 2019",
    ]
    lines += [
        "https://example.org/2019-03-04/model@v1.0",
        "doi 10.1109/TGRS.2017.2776321",
        "org/model-20240131 is a name",
    ]
    lines += ["2018 to 2021, 24,128 studies of 512 x 512 x 300 voxels", "IEEE TGRS 56(4), 2018", "199727024"[:6]]
    texts = {"README.md": "\n".join(lines), "config.json": '{"intermediate_size": 3072}'}
    assert find_patient_data(texts, {"3072-x"}, "org/model-20240131") == []
    assert find_patient_data({"config.json": '"name": "CASE-77"'}, {"CASE-77"}) == [
        "config.json, line 1: the id of a study"
    ]


def test_ids_that_could_be_anything_do_not_count(tmp_path):
    (tmp_path / "quarantine.csv").write_text("study,reason\n3072,x\nab,x\n8837465,x\nSTUDY_1/AX_T2,x\n")
    assert study_ids(tmp_path) == {"8837465", "STUDY_1"}


@pytest.mark.parametrize("name", CARDS)
def test_the_published_cards_pass(name):
    assert find_patient_data({"README.md": name.read_text(), "card.yaml": name.with_suffix(".yaml").read_text()}) == []


@pytest.mark.slow
def test_refused_when_it_does_not_load(folder):
    code = folder / "modeling_itemized_clip.py"
    code.write_text(code.read_text().replace("def score_items", "def score_itemz"))
    with pytest.raises(ValueError, match="fails its load test from its own code, without the package: .*score_items"):
        push_folder(folder, NAME, dry_run=True, license="mit")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="fails its load test with the package"):
        push_folder(folder, NAME, dry_run=True, license="mit")
    weights.unlink()
    with pytest.raises(ValueError, match="has no weights"):
        push_folder(folder, NAME, dry_run=True, license="mit")


def test_refused_with_another_processor(folder):
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    (folder / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="other settings or words than the model was made with"):
        push_folder(folder, NAME, dry_run=True, license="mit")


def test_refused_names_and_folders(folder, tmp_path):
    with pytest.raises(ValueError, match="expected ORG/NAME"):
        push_folder(folder, "name-alone", dry_run=True, license="mit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no config.json"):
        push_folder(tmp_path / "empty", NAME, dry_run=True, license="mit")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds adapters: merge them"):
        push_folder(tmp_path / "empty", NAME, dry_run=True, license="mit")


def test_only_files_of_a_model_are_chosen(tmp_path):
    for name in (
        "config.json",
        "model.safetensors",
        "optimizer.pt",
        "trainer_state.json",
        "quarantine.csv",
        "a.scores.jsonl",
    ):
        (tmp_path / name).touch()
    for name in ("checkpoint-10", ".cache", "LICENSES", "vocab.studies"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scan.nii.gz").touch()
    chosen, left_out = choose_files(tmp_path)
    assert chosen == ["config.json", "model.safetensors"]
    assert {"optimizer.pt", "trainer_state.json", "quarantine.csv", "checkpoint-10/", "a.scores.jsonl"} < set(left_out)


TRAIN = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from tiny_models import ITEMS, TRAINING, tiny_config
from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor, ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments
from itemized_clip_hf.models.tokenizer import train_tokenizer

processor = ItemizedCLIPProcessor.from_domain(
    "brain-mri", train_tokenizer(ITEMS, 120, 24), scan_size=[8, 16, 16], in_plane_size=16, use_scan_names=False
)
config = tiny_config()
config.domain = "brain-mri"
data = [{"id": f"STUDY_{i}", "images": {"T1": torch.rand(8, 16, 16)}, "items": ITEMS[:2]} for i in range(8)]
arguments = ItemizedCLIPTrainingArguments(
    sys.argv[1], max_steps=4, per_device_train_batch_size=4, push_to_hub=True, hub_model_id="org/trained", hub_license="mit",
    **{**TRAINING, "save_strategy": "steps", "save_steps": 2}
)
trainer = ItemizedCLIPTrainer(ItemizedCLIPModel(config), arguments, train_dataset=data, processing_class=processor)
trainer.train()
trainer.push_to_hub()
"""


@pytest.mark.slow
def test_the_trainer_pushes_what_the_command_would(tmp_path):
    with LoopbackHub() as hub:
        command = [sys.executable, "-c", TRAIN, str(tmp_path / "run"), str(SUPPORT)]
        done = run(command, hub.environment(tmp_path / "cache"))
        assert done.returncode == 0, done.stderr[-3000:]
        repo = hub.repos["org/trained"]
        assert len(repo.commits) >= 3, "no push at a checkpoint"
        assert {"model.safetensors", "README.md", "card.yaml", "modeling_itemized_clip.py"} < set(repo.files)
        assert not any(name.endswith((".bin", ".pt", ".csv")) for name in repo.files)
        card = repo.files["README.md"].decode()
        assert "| steps | 4 |" in card and "itemized_clip, ila_weight" in card and "| studies | 8 |" in card
        assert "STUDY_" not in card and str(tmp_path) not in card and "license: mit" in card


def test_the_trainer_asks_for_a_licence_before_it_trains(tmp_path, make_model, tokenizer):
    model = make_model()
    model.config.domain = "brain-mri"
    processor = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer, scan_size=[8, 16, 16], in_plane_size=16)
    settings = {"push_to_hub": True, "hub_model_id": "org/trained", "use_cpu": True}
    arguments = ItemizedCLIPTrainingArguments(str(tmp_path / "run"), **settings)
    with pytest.raises(ValueError, match="push_to_hub needs the license of the weights"):
        ItemizedCLIPTrainer(model, arguments, processing_class=processor)
    lora = ItemizedCLIPTrainingArguments(str(tmp_path / "run"), **settings, hub_license="mit", lora="both")
    with pytest.raises(ValueError, match="does not take adapters"):
        ItemizedCLIPTrainer(model, lora, processing_class=processor)
    model.config.domain = None
    with pytest.raises(ValueError, match="needs a model with a domain"):
        ItemizedCLIPTrainer(model, arguments, processing_class=processor)
    with pytest.raises(ValueError, match="optimizer states and pickled arguments are not uploaded"):
        ItemizedCLIPTrainingArguments(str(tmp_path / "run"), **settings, hub_strategy="checkpoint")
