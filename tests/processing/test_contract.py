"""A model remembers the preprocessing that it was made with, and a processor that differs says so."""

import json

import pytest
import torch
from tiny_models import ITEMS, tiny_config

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.domains import available_domains
from itemized_clip_hf.models.load import load
from itemized_clip_hf.models.tokenizer import train_tokenizer


@pytest.fixture
def pair(tmp_path, tokenizer):
    torch.manual_seed(0)
    processor = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer, scan_size=[8, 16, 16], in_plane_size=16)
    model = ItemizedCLIPModel(tiny_config())
    model.config.preprocessing = processor.preprocessing()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model", processor


@pytest.mark.parametrize("domain", available_domains())
def test_the_hash_survives_saving(domain, tmp_path, tokenizer):
    processor = ItemizedCLIPProcessor.from_domain(domain, tokenizer)
    processor.save_pretrained(tmp_path)
    assert ItemizedCLIPProcessor.from_pretrained(tmp_path).preprocessing() == processor.preprocessing()


def edit(folder, **settings):
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"].update(settings)
    path.write_text(json.dumps(content))


def test_a_matching_pair_is_quiet(pair, caplog):
    with caplog.at_level("WARNING"):
        _, processor = load(pair[0], "cpu")
    assert "processor" not in caplog.text and processor.preprocessing() == pair[1].preprocessing()


@pytest.mark.parametrize(
    "change", [{"percentiles": [1.0, 99.0]}, {"image_mean": [0.5]}, {"orientation": "LPS"}, {"do_normalize": False}]
)
def test_an_edited_processor_warns(pair, change, caplog):
    edit(pair[0], **change)
    with caplog.at_level("WARNING"):
        ItemizedCLIPProcessor.from_pretrained(pair[0])
    assert "image settings of this processor" in caplog.text and "not to be relied on" in caplog.text


def test_what_only_training_uses_does_not_count(pair, caplog):
    edit(pair[0], train_crop_scale=[0.5, 1.0])
    with caplog.at_level("WARNING"):
        ItemizedCLIPProcessor.from_pretrained(pair[0])
    assert "processor" not in caplog.text


def test_other_words_warn(pair, tmp_path, caplog):
    words = train_tokenizer(ITEMS[:2], vocab_size=100, context_length=24)
    words.save_pretrained(tmp_path / "words")
    with caplog.at_level("WARNING"):
        load(pair[0], "cpu", tokenizer=tmp_path / "words")
    assert "vocabulary or case of this processor" in caplog.text


def test_training_binds_the_processor_and_says_if_it_is_another(pair, tmp_path, caplog):
    from itemized_clip_hf import ItemizedCLIPTrainer, ItemizedCLIPTrainingArguments

    model, _ = load(pair[0], "cpu")
    other = ItemizedCLIPProcessor.from_domain("brain-mri", pair[1].tokenizer, scan_size=[8, 16, 16], in_plane_size=20)
    with caplog.at_level("WARNING"):
        ItemizedCLIPTrainer(
            model, ItemizedCLIPTrainingArguments(str(tmp_path / "run"), use_cpu=True), processing_class=other
        )
    assert "image settings of this processor" in caplog.text
    assert model.config.preprocessing == other.preprocessing()
