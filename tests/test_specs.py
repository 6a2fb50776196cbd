"""Files that people write, and damaged files of models: one clear error each, which names file, key and what was expected."""

import gzip
import json

import numpy as np
import pytest
import torch
import yaml

from itemized_clip_hf.conversion.checkpoint import read_state_dict
from itemized_clip_hf.data.studies.records import read_table
from itemized_clip_hf.domains import _FOLDER, available_domains, read_domain
from itemized_clip_hf.evaluation.protocols import load_protocol
from itemized_clip_hf.hub.card import CardFacts
from itemized_clip_hf.recipes import available_recipes, load_recipe
from itemized_clip_hf.specs import read_prompts, read_written

RECIPE = {"domain": "brain-mri", "training": {"learning_rate": 1e-4}}
PROTOCOL = {"title": "Mine", "findings": {"mass": "a mass"}}
CARD = {"name": "org/mine", "domain": "chest-ct"}
READERS = {
    "recipe": lambda path: load_recipe(str(path)),
    "protocol": load_protocol,
    "card": CardFacts.read,
    "domain": read_domain,
    "prompts": read_prompts,
}
DAMAGED = [
    # reader, content, what the error says
    ("recipe", {**RECIPE, "trainning": {}}, r"unknown keys \['trainning'\] \(perhaps 'training'"),
    ("recipe", {**RECIPE, "training": {"learning_rat": 1}}, "perhaps 'learning_rate'"),
    ("recipe", {**RECIPE, "training": {"max_items": "7"}}, "max_items is '7' .*expected a whole number"),
    ("recipe", {**RECIPE, "training": [1]}, "training is a list of 1, expected names with values"),
    ("recipe", {**RECIPE, "image": {"scan_size": [0, 1, 1]}}, r"scan_size is \[0, 1, 1\]"),
    ("recipe", {**RECIPE, "image": {"scan_sizes": [8, 1, 1]}}, "perhaps 'scan_size'"),
    ("recipe", {**RECIPE, "model": {"vision_config": {"hidden_size": 10**12}}}, "hidden_size"),
    ("recipe", {**RECIPE, "model": {"vision_config": {"patch_dropuot": 0.5}}}, "perhaps 'patch_dropout'"),
    ("recipe", {**RECIPE, "variants": {"a": {"modell": {}}}}, "variant a: unknown keys .*perhaps 'model'"),
    ("recipe", {**RECIPE, "domain": None}, "domain is nothing, expected text"),
    ("recipe", {"training": {}}, "lacks .*domain"),
    ("recipe", {**RECIPE, "global_batch_size": -1}, "global_batch_size is -1"),
    ("recipe", "domain: brain-mri\ndomain: chest-ct\n", "duplicate key 'domain'"),
    ("recipe", "domain: brain-mri\nbase: {}\n", "base is a dict"),
    ("recipe", "[" * 5000, "nested too deep|no YAML"),
    ("recipe", b"\xff\xfed\0o\0", "not text in UTF-8"),
    ("recipe", b"domain: brain\0mri", "NUL bytes"),
    ("recipe", "domain: !!python/object:os.system x", "not valid YAML"),
    ("protocol", {**PROTOCOL, "findngs": {}}, "perhaps 'findings'"),
    ("protocol", {**PROTOCOL, "classes": ["a"]}, "either `findings` or `classes`"),
    ("protocol", {"findings": 3}, "findings is 3 .*expected a list or names"),
    ("protocol", {"findings": {"mass": [1]}}, "mass.*is 1 .*expected text"),
    ("protocol", {**PROTOCOL, "tables": {"": "/etc/passwd"}}, "no pattern of files inside"),
    ("protocol", {**PROTOCOL, "tables": {"": "../*.csv"}}, "no pattern of files inside"),
    ("protocol", {**PROTOCOL, "scan_name": "{nme}"}, "scan_name is '{nme}'"),
    ("protocol", {**PROTOCOL, "array_spacing": [1, 1]}, "array_spacing is"),
    ("protocol", {**PROTOCOL, "variants": {"a": {"colums": {}}}}, "variant a: unknown keys.*perhaps 'columns'"),
    ("protocol", "findings: {No: nothing}", "put it in quotes"),
    ("card", {**CARD, "licence": "mit"}, "perhaps 'license'"),
    ("card", {**CARD, "paper": [{"benchmark": "B"}]}, r"paper\[0\] lacks"),
    ("card", {**CARD, "measured": [{"benchmark": "B", "metric": "auc", "value": "x"}]}, "value is 'x' .*a number"),
    ("card", {**CARD, "training": 7}, "training is 7"),
    ("card", {**CARD, "image": {"windows": {"": [300, -300]}}}, "windows"),
    ("card", {**CARD, "scoring": "both"}, "scoring is 'both'"),
    ("domain", {"title": "T"}, "lacks"),
    ("prompts", {"mass": None}, "'mass' is nothing, expected a list"),
    ("prompts", {"mass": []}, "no prompt"),
    ("prompts", {"mass": [" "]}, "blank"),
    ("prompts", {}, "expected label -> prompt"),
    ("prompts", "just a word", "expected label -> prompt"),
    ("prompts", "mass: .nan", "finite"),
    (
        "prompts",
        "a: &a [" + "x, " * 9 + "x]\nb: &b [" + "*a, " * 99 + "*a]\nc: &c [" + "*b, " * 99 + "*b]\nd: [*c, *c, *c]",
        "more than",
    ),
    ("prompts", "a: &a [*a]", "nested|no usable YAML|no YAML"),
]


@pytest.mark.parametrize(("kind", "content", "said"), DAMAGED)
def test_one_clear_error(tmp_path, kind, content, said):
    path = tmp_path / "mine.yaml"
    text = content if isinstance(content, (str, bytes)) else yaml.safe_dump(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=said) as caught:
        READERS[kind](path)
    assert type(caught.value) is ValueError and "mine" in str(caught.value) and "\n" not in str(caught.value)


def test_own_files_pass_their_schemas():
    assert [read_domain(_FOLDER / f"{name}.yaml").name for name in available_domains()] == available_domains()
    for name in available_recipes():
        recipe = load_recipe(name)
        assert all(recipe.variant(variant).architecture() for variant in recipe.variants)


def test_numbers_as_json_writes_them_and_dates_as_words(tmp_path):
    (tmp_path / "a.yaml").write_text("rate: 1e-4\nday: 2020-01-02\n")
    assert read_written(tmp_path / "a.yaml") == {"rate": 1e-4, "day": "2020-01-02"}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, '[{"a": ' + "9" * 5000 + "}]", '"x"', "7"])
def test_json_that_is_no_list_of_studies(tmp_path, text):
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            read_table(tmp_path / name)


def test_damaged_gzip_table(tmp_path):
    content = bytearray(gzip.compress(b'{"id": "a"}\n' * 50))
    content[14] ^= 255
    (tmp_path / "a.jsonl.gz").write_bytes(content)
    with pytest.raises(ValueError, match="a.jsonl.gz"):
        read_table(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8), "quantized"),
        (torch.eye(3, dtype=torch.complex64), "complex"),
        (torch.zeros(1).expand(1 << 20, 1 << 12), "more than the file holds"),
        (torch.empty(3, device="meta"), "without values"),
    ],
)
def test_weights_that_are_no_ordinary_tensors(tensor, said):
    with pytest.raises(ValueError, match=f"the weight a is .*{said}"):
        read_state_dict({"a": tensor})


MHA = "ObjectType = Image\nNDims = 3\nDimSize = 4 5 6\nElementType = MET_SHORT\n{}ElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n{}\n"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("a.mha", ("NDims = 3", "NDims = -1"), "-1 axes"),
        ("a.mha", ("NDims = 3", "NDims = 9999999"), "9999999 axes"),
        ("a.mha", ("4 5 6", "4 5"), "dimsize is '4 5'"),
        ("a.mha", ("4 5 6", "4 5 -6"), "dimsize"),
        ("a.mha", ("MET_SHORT", "MET_STRING"), "ElementType"),
        ("a.mha", ("LOCAL", "../../etc/passwd"), "outside of its folder"),
        ("a.mha", ("4 5 6", "40 5 6"), "truncated"),
        ("a.mha", ("{}", "Comment = " + "x" * 70_000 + "\n"), "header does not end"),
        ("a.nrrd", ("{}", "space: " + "x" * 20_000 + "\n"), "20,007 bytes"),
        ("a.nrrd", ("{}", "content: " + "x" * 200_000 + "\n"), "limit|does not end|has"),
        ("a.mha", ("{}", "Name = " + "x" * 490 + "\n"), "more than 240 bytes"),
        ("a.nrrd", ("{}", "- " * 1000 + "\n"), "more than 500 bytes"),
        ("a.nrrd", ("{}", "kinds: " + "x" * 1100 + "\n"), "more than 500 bytes"),
        ("a.nrrd", ("dimension: 3", "dimension: 99"), "99 axes"),
        ("a.nrrd", ("4 5 6", "4 5 1e300"), "sizes"),
        ("a.nrrd", ("raw", "zebra"), "encoding is 'zebra'"),
        ("a.nrrd", ("{}", "space directions: (1,0,0) (0,1)\n"), "space"),
        ("a.nrrd", ("{}", "data file: /etc/passwd\n"), "outside of its folder"),
    ],
)
def test_headers_that_end_the_process_inside_itk(tmp_path, name, change, said):
    from itemized_clip_hf.data.readers.itk import check_header

    text = MHA if name.endswith("mha") else NRRD
    voxels = np.arange(120, dtype="<i2").tobytes()
    right, wrong = tmp_path / f"right-{name}", tmp_path / name
    right.write_bytes(text.replace("{}", "").encode() + voxels)
    wrong.write_bytes(text.replace(*change).replace("{}", "").encode() + voxels)
    check_header(right)
    with pytest.raises(ValueError, match=said) as caught:
        check_header(wrong)
    assert len(str(caught.value)) < 400


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from tiny_models import ITEMS, tiny_config

    from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(ITEMS, 120, 24)
    model = ItemizedCLIPModel(tiny_config(len(tokenizer)))
    model.save_pretrained(folder, max_shard_size="40KB")
    settings = {"scan_size": [8, 16, 16], "in_plane_size": 18}
    ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer, **settings).save_pretrained(folder)
    return folder


def in_json(name, *keys, value):
    def change(folder):
        content = json.loads((folder / name).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / name).write_text(json.dumps(content))

    return change


def cut(pattern):
    def change(folder):
        file = sorted(folder.glob(pattern))[0]
        file.write_bytes(file.read_bytes()[:50])

    return change


INDEX = "model.safetensors.index.json"


def with_nan(folder):
    from safetensors.torch import load_file, save_file

    file = sorted(folder.glob("model-*.safetensors"))[0]
    save_file({name: torch.full_like(t, torch.nan) for name, t in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (in_json(INDEX, "weight_map", value=None), "weight_map is nothing"),
        (in_json(INDEX, "weight_map", value={"a": "../other.safetensors"}), "no file '../other.safetensors'"),
        (in_json(INDEX, "weight_map", value={"a": 3}), "is 3 .*expected text"),
        (cut("model-*.safetensors"), "truncated, damaged or no safetensors"),
        (with_nan, "not finite"),
        (in_json("config.json", "projection_dim", value=10**12), "projection_dim"),
        (in_json("config.json", "vision_config", "num_attention_heads", value=0), "num_attention_heads"),
        (in_json("config.json", "vision_config", "image_size", value=["a", 1, 1]), "image_size"),
        (in_json("config.json", "vision_config", "hidden_size", value=48), "another shape"),
        (in_json("config.json", "vision_config", value=[1]), "vision_config is a list"),
        (in_json("config.json", "text_config", "model_type", value=7), "config.json cannot be read|model_type"),
        (cut("config.json"), "config.json is not valid JSON"),
        (cut("tokenizer.json"), "tokenizer.json is not valid JSON"),
        (in_json("tokenizer.json", "model", "vocab", value={"[UNK]": 10**12}), "model.vocab"),
        (in_json("tokenizer.json", "model", value=3), "tokenizer"),
        (in_json("tokenizer_config.json", "model_max_length", value=[3]), "model_max_length is a list"),
        (in_json("tokenizer_config.json", "model_max_length", value=-1), "model_max_length is -1, expected at least 3"),
        (in_json("processor_config.json", "image_processor", "scan_size", value="x"), "scan_size"),
        (in_json("processor_config.json", "image_processor", "image_std", value=[0]), "image_std"),
    ],
)
def test_damaged_model_folders(model_folder, tmp_path, change, said):
    import shutil

    from itemized_clip_hf.models.load import load

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    change(folder)
    with pytest.raises(ValueError, match=said) as caught:
        load(folder, "cpu")
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)


def test_weights_to_start_from_are_numbers(model_folder, tmp_path):
    from itemized_clip_hf.conversion.initialize import initialize
    from itemized_clip_hf.models.load import load

    model, _ = load(model_folder, "cpu")
    state = {name: t.clone() for name, t in model.state_dict().items()}
    model.visual_projection.weight.data.fill_(torch.nan)
    model.save_pretrained(tmp_path / "nan")
    model.load_state_dict(state)
    with pytest.raises(ValueError, match="not finite"):
        initialize(model, tmp_path / "nan")
