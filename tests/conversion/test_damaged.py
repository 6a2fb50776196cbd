"""Files that are no checkpoint of the stated domain, or no longer one: the right error, nothing written, nothing executed."""

import builtins
import fractions
import json
import os
import pathlib
import re
import tracemalloc

import numpy as np
import pytest
import torch
from sources import prima_state, source, tokenizer_of_size, training_dictionary

from itemized_clip_hf.conversion import convert
from itemized_clip_hf.conversion.checkpoint import read_checkpoint
from itemized_clip_hf.conversion.folder import convert_folder
from itemized_clip_hf.data.readers.tensor import read as read_tensor


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path, function=builtins.open):
        self.path, self.function = str(path), function

    def __reduce__(self):
        return (self.function, (self.path, "w") if self.function is builtins.open else (f"touch {self.path}",))


def without(*names):
    return lambda state, _: {name: tensor for name, tensor in state.items() if name not in names}


def with_one(name, tensor):
    return lambda state, _: {**state, name: tensor}


def changed(name, change):
    return lambda state, _: {**state, name: change(state[name])}


FIRST_QKV = "visual.trunk.blocks.0.attn.qkv.weight"
CASES = {
    # layout, change of the state dict, what the error says
    "missing key": ("pictures", without("visual.ln_pre.weight"), "missing keys: visual.ln_pre.weight"),
    "missing layer": (
        "volumes",
        lambda s, _: {n: t for n, t in s.items() if ".blocks.0." not in n},
        "blocks.0.mlp.fc1",
    ),
    "missing text norm": (
        "volumes",
        without("text.transformer.embeddings.LayerNorm.bias"),
        "missing keys: text.transformer.embeddings.LayerNorm.bias",
    ),
    "missing word embeddings": (
        "volumes",
        without("text.transformer.embeddings.word_embeddings.weight"),
        "missing keys: text.transformer.embeddings.word_embeddings.weight",
    ),
    "missing text tower": (
        "volumes",
        lambda s, _: {n: t for n, t in s.items() if not n.startswith("text.transformer.")},
        "missing keys: text.transformer.embeddings.word_embeddings.weight",
    ),
    "missing vision layers": (
        "pictures",
        lambda s, _: {n: t for n, t in s.items() if not n.startswith("visual.transformer.")},
        "missing keys: visual.transformer.resblocks.0.mlp.c_fc.weight",
    ),
    "one weight twice": (
        "hlip",
        lambda s, _: {**s, "visual.trunk.series_posemb": 2 * s["visual.trunk.sequential_posemb"]},
        "series_posemb and visual.trunk.sequential_posemb are the same weight",
    ),
    "two scales": ("pictures", changed("logit_scale", lambda t: t.repeat(2)), "logit_scale has 2 values"),
    "other axes": ("pictures", changed("visual.conv1.weight", torch.Tensor.flatten), "another number of axes"),
    "a key that is no name": ("pictures", None, "are no names, e.g. 3"),
    "missing pooler key": ("volumes", without("visual_attn.ln_q.weight"), "missing keys: visual_attn.ln_q.weight"),
    "missing bias of the logits": ("pictures", without("logit_bias"), "missing keys: logit_bias"),
    "missing name encoder key": (
        "names",
        without("visual.trunk.sne_proj.bias"),
        "missing keys: visual.trunk.sne_proj.bias",
    ),
    "extra key": ("pictures", with_one("visual.extra", torch.zeros(1)), "left-over keys: visual.extra"),
    "extra text key": (
        "volumes",
        with_one("text.transformer.pooler.dense.weight", torch.zeros(2, 2)),
        "left-over keys: text.transformer.pooler.dense.weight",
    ),
    "both": (
        "pictures",
        lambda s, _: {**{n: t for n, t in s.items() if n != "logit_scale"}, "scale": torch.zeros(1)},
        "missing keys: logit_scale; left-over keys: scale",
    ),
    "wrong shape": ("volumes", changed(FIRST_QKV, lambda t: t[:-1]), rf"{FIRST_QKV} is \(\d+, \d+\), expected"),
    "wrong shape of the pooler": (
        "pictures",
        changed("visual_proj.attn.in_proj_bias", lambda t: t[:-3]),
        "visual_proj.attn.in_proj_bias",
    ),
    "wrong grid": ("pictures", changed("visual.positional_embedding", lambda t: t[:-1]), "a square grid"),
    "not finite": ("volumes", changed(FIRST_QKV, lambda t: t * float("nan")), f"NaN or infinite values in {FIRST_QKV}"),
    "no tensors": ("pictures", with_one("visual.extra", 3), "not tensors"),
    "truncated": ("pictures", None, "truncated, damaged"),
    "older format, truncated": ("pictures", None, "unexpected EOF|truncated, damaged"),
    "truncated safetensors": ("pictures", None, "cannot be read as a checkpoint"),
    "empty": ("pictures", None, "truncated, damaged, or no checkpoint at all"),
    "text": ("pictures", None, "truncated, damaged, or no checkpoint at all"),
    "a web page": ("pictures", None, "truncated, damaged, or no checkpoint at all"),
    "payload beside the weights": ("pictures", None, r"an object of \w+\.open\."),
    "payload among the weights": ("pictures", None, r"an object of \w+\.open\."),
    "payload alone": ("pictures", None, r"an object of \w+\.open\."),
    "payload that calls the shell": ("pictures", None, r"an object of \w+\.system\."),
    "payload in the older format": ("pictures", None, r"an object of \w+\.open\."),
    "a path of the author's": ("pictures", None, "an object of pathlib"),
    "another object": ("pictures", None, "an object of fractions.Fraction"),
    "a whole module": ("pictures", None, "an object of torch.nn.modules.linear.Linear"),
    "numpy's text": ("pictures", None, "an object of numpy.dtypes.StrDType"),
    "a list": ("pictures", None, "holds a list, expected a dictionary"),
    "no such file": ("pictures", None, "there is no checkpoint"),
    "a folder": ("pictures", None, "is a folder"),
    "other project, ResNet": (
        "pictures",
        lambda s, _: {"conv1.weight": torch.zeros(8, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(8, 8, 1, 1)},
        "no known checkpoint layout",
    ),
    "other project, open_clip": (
        "pictures",
        lambda s, _: {
            **{
                n: t for n, t in s.items() if not n.startswith(("visual_proj", "image_post", "text_post", "logit_bias"))
            },
            "visual.proj": torch.zeros(4, 4),
            "text_projection": torch.zeros(4, 4),
        },
        "missing keys: image_post.proj.*left-over keys: text_projection, visual.proj",
    ),
    "other project, MAE": (
        "volumes",
        lambda s, _: {"patch_embed.proj.weight": torch.zeros(4, 3, 8, 8), "pos_embed": torch.zeros(1, 5, 4)},
        "2-D ViT: .*--init",
    ),
    "converted already": (
        "pictures",
        lambda s, _: {"vision_model.embeddings.patch_embedding.weight": torch.zeros(4, 3, 1, 8, 8)},
        "weights of this package",
    ),
    "Prima's names alone": ("names", lambda s, _: prima_state(s), "--into MODEL"),
}


def write_case(name: str, state: dict, change, tmp_path):
    path = tmp_path / ("c.safetensors" if "safetensors" in name else "c.pt")
    checkpoint = training_dictionary(state)
    if change is not None:
        changed_state = change(state, None)
        torch.save({"epoch": 1, "state_dict": {f"module.{n}": t for n, t in changed_state.items()}}, path)
        return path
    payload = Payload(tmp_path / "ran", os.system if "shell" in name else builtins.open)
    extra = {
        "a path of the author's": {"args": pathlib.PurePosixPath("/home/somebody")},
        "another object": {"best": fractions.Fraction(1, 2)},
        "numpy's text": {"name": np.str_("run")},
        "a whole module": {"model": torch.nn.Linear(2, 2)},
    }
    old = not name.startswith(("older", "payload in the older"))
    if name == "a key that is no name":
        torch.save({"state_dict": {**state, 3: torch.zeros(1)}}, path)
        return path
    if name == "no such file":
        return path
    if name == "a folder":
        path.mkdir()
    elif name == "a list":
        torch.save([1, 2], path)
    elif name == "payload alone":
        torch.save(payload, path)
    elif name == "payload among the weights":
        torch.save({"state_dict": {**checkpoint["state_dict"], "x": payload}}, path)
    elif name.startswith("payload") or name in extra:
        more = extra.get(name, {"extra": payload})
        torch.save({**checkpoint, **more}, path, _use_new_zipfile_serialization=old)
    elif "truncated" in name:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({n: t.contiguous() for n, t in state.items()}, path)
        else:
            torch.save(checkpoint, path, _use_new_zipfile_serialization=old)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    else:
        path.write_text({"empty": "", "text": "weights\n", "a web page": "<!DOCTYPE html><html>Not found</html>"}[name])
    return path


@pytest.mark.parametrize("name", CASES)
def test_damaged(tmp_path, name):
    layout, change, message = CASES[name]
    state, domain, config = source(layout)
    path = write_case(name, state, change, tmp_path)
    tokenizer = tokenizer_of_size(config.text_config.vocab_size)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert_folder(path, domain, tmp_path / "model", tokenizer, config, accept=["other-vocabulary"])
    assert not (tmp_path / "ran").exists(), "the payload ran"
    assert sorted(p.name for p in tmp_path.iterdir()) in ([path.name], []), "something was left behind"


def test_the_payload_would_run():
    """The files above hold what they claim: an unguarded load executes it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "c.pt")
        torch.save({"x": Payload(pathlib.Path(folder, "ran"))}, path)
        torch.load(path, weights_only=False)
        assert pathlib.Path(folder, "ran").exists()


@pytest.mark.parametrize(
    ("layout", "domain"),
    [("pictures", "chest-ct"), ("volumes", "brain-mri"), ("volumes", "remote-sensing"), ("hlip", "chest-ct")],
)
def test_wrong_domain(tmp_path, layout, domain):
    state, _, config = source(layout)
    path = write_case("", state, lambda s, _: s, tmp_path)
    tokenizer = tokenizer_of_size(config.text_config.vocab_size)
    with pytest.raises(ValueError, match=f"that of '{domain}' is .*is the domain right"):
        convert_folder(path, domain, tmp_path / "model", tokenizer)


def test_sizes_other_than_the_domains(tmp_path):
    """A tower that lost its last layers is no smaller model, unless somebody says so."""
    from training_files import GOLDEN

    manifest = GOLDEN / "manifest_vit_b16_2d.json"
    if not manifest.exists():
        pytest.skip(f"no manifests at {GOLDEN}")
    shapes = json.loads(manifest.read_text())["state_dict"]
    kept = {n: e for n, e in shapes.items() if not re.match(r"module\.transformer\.resblocks\.(9|10|11)\.", n)}
    state = {name: torch.zeros(entry["shape"]) for name, entry in kept.items()}
    with pytest.raises(ValueError, match="text_config.num_hidden_layers is 9, that of 'remote-sensing' is 12"):
        convert(state, "remote-sensing")


def test_unknown_domain(tmp_path):
    with pytest.raises(ValueError, match="unknown domain 'knee-mri'"):
        convert_folder(tmp_path / "c.pt", "knee-mri", tmp_path / "model", tokenizer_of_size(9))


def test_tokenizers_of_other_words(tmp_path):
    state, domain, config = source("pictures")
    path = write_case("", state, lambda s, _: s, tmp_path)
    size = config.text_config.vocab_size
    with pytest.raises(ValueError, match=f"the tokenizer has {size + 1} entries.*bpe_simple_vocab_16e6.txt.gz"):
        convert_folder(path, domain, tmp_path / "model", tokenizer_of_size(size + 1), config)
    with pytest.raises(ValueError, match="other words than bpe_simple_vocab.*--accept other-vocabulary"):
        convert_folder(path, domain, tmp_path / "model", tokenizer_of_size(size), config)
    with pytest.raises(ValueError, match="a checkpoint holds no vocabulary: pass --tokenizer with bpe_simple"):
        convert_folder(path, domain, tmp_path / "model", None, config)
    assert not (tmp_path / "model").exists()


def test_vocabularies_that_are_known(data_folder):
    from itemized_clip_hf.conversion.vocabulary import check_vocabulary
    from itemized_clip_hf.models.tokenizer import load_tokenizer

    clip = load_tokenizer(data_folder / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz")
    assert check_vocabulary(clip, "remote-sensing", 49408)["confirmed"]
    bert = load_tokenizer(data_folder / "tokenizers" / "bert_base_uncased_vocab.txt")
    with pytest.raises(
        ValueError, match="that of BERT base uncased, with the right size but other words than vocab.txt"
    ):
        check_vocabulary(bert, "chest-ct", 30522)
    assert check_vocabulary(bert, "chest-ct", 30522, ["other-vocabulary"])["name"] == "BERT base uncased"


@pytest.mark.parametrize("read", [read_checkpoint, read_tensor])
def test_no_more_memory_is_taken_than_the_file_holds(tmp_path, read):
    """A flipped bit in the length of a text, in torch's format before 1.6: Python takes the memory, then reads."""
    good, path = tmp_path / "good.pt", tmp_path / "damaged.pt"
    torch.save({"first": torch.zeros(2)}, good, _use_new_zipfile_serialization=False)
    damaged = good.read_bytes().replace(b"X\x05\x00\x00\x00first", b"X\x05\x00\x00\x40first")
    assert damaged != good.read_bytes()
    path.write_bytes(damaged)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="damaged"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
