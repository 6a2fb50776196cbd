"""Lists of studies and tokenizers."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import ITEMS

from itemized_clip_hf.data.studies.cache import CachedPictures
from itemized_clip_hf.data.studies.records import as_items, read_records
from itemized_clip_hf.models.tokenizer import load_tokenizer, train_tokenizer


def jpeg(size=(40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_jsonl(tmp_path):
    path = tmp_path / "studies.jsonl"
    lines = [
        {"id": "a", "images": {"T1": "a/t1.nii.gz", "T2": None}, "items": ["x ", " ", "y"], "labels": {"mass": 1}},
        {"id": "b", "images": ["b.nii.gz", "/abs/c.nii.gz"], "items": ["z"]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    records = read_records(path)
    assert len(records) == 2 and list(records.items()) == [["x", "y"], ["z"]]
    assert records[0]["images"] == {"T1": str(tmp_path / "a/t1.nii.gz")} and records[0]["labels"] == {"mass": 1}
    assert records[1]["images"] == [str(tmp_path / "b.nii.gz"), "/abs/c.nii.gz"]
    path.write_text('{"id": 1}\n{broken\n')
    with pytest.raises(ValueError, match="studies.jsonl, line 2: no JSON"):
        read_records(path)
    with pytest.raises(ValueError, match="no column 'reports'"):
        path.write_text(json.dumps(lines[0]))
        read_records(path, items_column="reports")


def test_parquet(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    rows = {"filename": ["a.jpg", "b.jpg"], "label": ["Airport", "Beach"], "image": [jpeg(), b"broken"],
            "captions_unique": [["one . ", "."], ["two"]]}  # fmt: skip
    for part in range(2):
        pq.write_table(pa.table(rows), tmp_path / f"train-{part}.parquet")
    records = read_records(str(tmp_path / "train-*.parquet"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    alone = read_records(str(tmp_path / "train-*.parquet"))  # by pyarrow
    assert list(alone.items()) == list(records.items()) and len(alone) == len(records)
    assert np.array_equal(np.asarray(alone[2]["images"]), np.asarray(records[2]["images"]))
    monkeypatch.undo()
    assert len(records) == 4
    assert (
        records[0]["items"] == ["one ."] and records[0]["label"] == "Airport" and records[0]["images"].size == (30, 40)
    )
    cached = CachedPictures(records, 16, progress=False)
    assert len(cached) == 2 and len(cached.skipped) == 2
    assert min(cached[0]["images"].shape[:2]) == 16 and cached[0]["images"].dtype == np.uint8
    with pytest.raises(FileNotFoundError, match="no file matches"):
        read_records(str(tmp_path / "none-*.parquet"))


def test_folders(write_volume, tmp_path):
    write_volume("studies/one/T1.nii.gz")
    write_volume("studies/one/T2.nii.gz")
    write_volume("studies/two/T1.nii.gz")
    records = read_records(tmp_path / "studies")
    assert [record["id"] for record in records] == ["one", "two"]
    assert read_records(tmp_path / "studies" / "one")[0]["id"] == "one"
    Image.new("RGB", (8, 8)).save(tmp_path / "studies" / "two" / "picture.png")
    assert read_records(tmp_path / "studies" / "two" / "picture.png")[0]["id"] == "picture"


def test_items():
    assert as_items("one item") == ["one item"]
    assert as_items(["a", "", " . ", None, " b "]) == ["a", "b"]


def test_learned_vocabulary_is_the_same_in_every_process(tmp_path):
    items = ["left frontal mass", "naïve bleed 3.5 cm", *ITEMS] * 3
    code = (
        "import sys, json; from itemized_clip_hf.models.tokenizer import train_tokenizer\n"
        "print(json.dumps(train_tokenizer(json.loads(sys.argv[1]), 90, 12).get_vocab(), sort_keys=True))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, json.dumps(items)],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # texts hash otherwise than in this process
        capture_output=True,
        text=True,
        check=True,
    )
    tokenizer = train_tokenizer(items, 90, 12)
    assert json.loads(other.stdout) == tokenizer.get_vocab()
    assert len(train_tokenizer(items, len(tokenizer) - 3, 12)) == len(tokenizer) - 3
    encoded = tokenizer("Left FRONTAL mass")
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["[CLS]", "left", "frontal", "mass", "[SEP]"]
    assert "token_type_ids" not in encoded
    assert tokenizer.unk_token_id not in tokenizer("massive")["input_ids"]
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, 8)("left mass")["input_ids"] == tokenizer("left mass")["input_ids"]
    assert load_tokenizer(tmp_path, 8).model_max_length == 8


def test_bert_vocabulary(data_folder):
    tokenizer = load_tokenizer(data_folder / "tokenizers" / "bert_base_uncased_vocab.txt", 256)
    assert tokenizer("Hello world")["input_ids"] == [101, 7592, 2088, 102]
    assert len(tokenizer) == 30522 and tokenizer.pad_token_id == 0


def test_clip_merges(data_folder):
    tokenizer = load_tokenizer(data_folder / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz", 100)
    assert tokenizer("A photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("hello!")["input_ids"] == [49406, 3306, 256, 49407]
    assert len(tokenizer) == 49408 and tokenizer.pad_token_id == 49407
    longest = tokenizer("river " * 200, truncation=True)["input_ids"]
    assert len(longest) == 100 and longest[-1] == 49407


def test_tokenizer_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load_tokenizer(tmp_path / "gone")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="lacks"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_relative_folders(write_volume, tmp_path, monkeypatch):
    """A folder named from where the user stands, not from the root."""
    for study in ("a", "b"):
        write_volume(f"studies/{study}/T1.nii.gz")
    monkeypatch.chdir(tmp_path)
    for source, ids in (("studies", ["a", "b"]), ("studies/a", ["a"]), ("./studies", ["a", "b"])):
        records = read_records(source)
        assert [records[i]["id"] for i in range(len(records))] == ids
        assert all(Path(records[i]["images"]).exists() for i in range(len(records)))
    monkeypatch.chdir(tmp_path / "studies" / "a")
    assert read_records(".")[0]["id"] == "a"


@pytest.mark.parametrize("reader", ["datasets", "pyarrow"])
def test_texts_of_parquet_that_are_not_utf8_are_refused_at_once(reader, tmp_path, monkeypatch):
    """Parquet stores any bytes as text; the column is named when the list is opened, not when its row is read."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = [pa.py_buffer(np.array([0, 2, 4], dtype="int32").tobytes()), pa.py_buffer(b"ab\xff\xfe")]
    ids = pa.StringArray.from_buffers(2, texts[0], texts[1])
    pq.write_table(pa.table({"id": ids, "items": [["a finding."], ["another."]]}), tmp_path / "list.parquet")
    if reader == "pyarrow":
        monkeypatch.setattr(
            "itemized_clip_hf.data.studies.records.find_spec", lambda name: None if name == "datasets" else True
        )
    with pytest.raises(ValueError, match="list.parquet, column 'id': damaged"):
        read_records(tmp_path / "list.parquet")
