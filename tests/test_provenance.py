"""Hashes keep their values: files of scores and folders that were written before go on."""

import hashlib
import json
from types import SimpleNamespace

import torch

from itemized_clip_hf import provenance


def test_the_hash_of_a_model_is_that_of_earlier_files_and_ignores_where_it_lies():
    settings = {"model_type": "itemized_clip", "dtype": "float32", "_name_or_path": "somewhere", "projection_dim": 2}
    layer = torch.nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.bias.fill_(0.5)
    layer.config = SimpleNamespace(to_json_string=lambda: json.dumps(settings))
    expected = "6b4de78502a9556054c09ed5e1b24ccff5535aaac714be396a4241e233bd0963"
    assert provenance.hash_model(layer) == expected
    settings["_name_or_path"] = "elsewhere"
    assert provenance.hash_model(layer) == expected
    with torch.no_grad():
        layer.bias[0] = 0.25
    assert provenance.hash_model(layer) != expected


def test_the_hash_of_a_processor_is_that_of_earlier_files_and_ignores_padding():
    backend = {"model": {"type": "BPE"}, "padding": {"length": 3}}
    tokenizer = SimpleNamespace(
        backend_tokenizer=SimpleNamespace(to_str=lambda: json.dumps(backend)), model_max_length=77, get_vocab=dict
    )
    image_processor = SimpleNamespace(to_json_string=lambda: "{}")
    processor = SimpleNamespace(tokenizer=tokenizer, lowercase=True, image_processor=image_processor)
    expected = "32b121e331e0dc89fb6fd5a2697a5d9f0dcce0f4edcdfd5702639aa68143a2b9"
    assert provenance.hash_processor(processor) == expected
    backend["padding"] = None
    assert provenance.hash_processor(processor) == expected
    processor.lowercase = False
    assert provenance.hash_processor(processor) != expected


def test_a_file_is_hashed_as_its_content(tmp_path):
    content = bytes(range(256)) * 8192  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert provenance.hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_package_that_is_not_installed_has_no_version():
    versions = provenance.installed_versions(("python", "torch", "no-such-package"))
    assert list(versions) == ["itemized-clip-hf", "python", "torch", "no-such-package"]
    assert versions["torch"] == torch.__version__ and versions["no-such-package"] is None


def test_what_is_sent_to_others_names_no_folder_above_the_model(make_model, tmp_path):
    model = make_model()
    model.config._name_or_path = str(tmp_path)
    assert provenance.describe_for_others(model, "a", "b")["model"]["name"] == tmp_path.name
    model.config._name_or_path = "org/model"
    assert provenance.describe_for_others(model, "a", "b")["model"]["name"] == "org/model"
