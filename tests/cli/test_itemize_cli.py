"""`itemized-clip itemize` as a user types it."""

import gzip
import json
import subprocess
from pathlib import Path

import pytest
from forked import run_forked

ROOT = Path(__file__).parents[2]
ROWS = [
    {
        "id": "x1",
        "report": "The lungs are clear. There is a cyst in the left kidney.",
        "split": "train",
        "labels": {"Cyst": 1},
    },
    {"id": "x2", "report": "No pleural effusion. Bones are natural.", "split": "val", "labels": {"Cyst": 0}},
    {"id": "x3", "report": "", "split": "val", "labels": {"Cyst": 0}},
]


def run(*arguments, check=True) -> subprocess.CompletedProcess:
    return run_forked("itemize", *arguments, check=check)


@pytest.fixture
def reports(tmp_path) -> Path:
    with gzip.open(tmp_path / "reports.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, ROWS)))
    return tmp_path / "reports.jsonl.gz"


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reports_to_items(reports, tmp_path):
    out = tmp_path / "items.jsonl"
    summary = json.loads(run("-i", reports, "-o", out, "--domain", "chest-ct", "--json").stdout)
    assert summary == {"reports": 3, "items": 2, "removed": {"normal": 2, "absent": 1}, "normal": 1, "empty": 1}
    one, two, three = read(out)
    assert one["items"] == ["There is a cyst in the left kidney."] and one["spans"] == [[21, 56]]
    assert one["removed"] == [{"start": 0, "end": 20, "reason": "normal"}]
    assert (one["labels"], one["split"], one["is_normal"], two["is_normal"]) == ({"Cyst": 1}, "train", False, True)
    assert (two["items"], two["spans"]) == (["no significant abnormalities."], [None])
    assert (three["items"], three["is_normal"]) == ([], False)
    assert "lungs are clear" not in out.read_text()
    table = run("-i", reports, "-o", out, "--keep-text").stdout
    assert "removed                3" in table and "  absent                       1" in table
    assert read(out)[0]["removed"][0]["text"] == "The lungs are clear." and read(out)[0]["text"] == ROWS[0]["report"]

    from itemized_clip_hf.data.studies.records import read_records

    assert list(read_records(out))[0]["items"] == one["items"]


def test_columns_of_a_table(tmp_path):
    (tmp_path / "r.csv").write_text("uid,first,second\n5,A cyst.,Scoliosis of the spine\n")
    columns = ("--text-column", "first", "--text-column", "second", "--id-column", "uid")
    run("-i", tmp_path / "r.csv", "-o", tmp_path / "o.jsonl", *columns)
    assert read(tmp_path / "o.jsonl")[0]["items"] == ["A cyst.", "Scoliosis of the spine"]
    assert read(tmp_path / "o.jsonl")[0]["spans"] == [[0, 7], [9, 31]]


def test_prompts_out_answers_in(reports, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    done = run("-i", reports, "--write-prompts", prompts, "--json")
    assert json.loads(done.stdout) == {"reports": 3, "prompts": 2}
    assert [line["id"] for line in read(prompts)] == ["x1", "x2"]
    assert [message["role"] for message in read(prompts)[0]["messages"]] == ["system", "user"]
    answers = tmp_path / "answers.jsonl"
    lines = [
        {"id": "x1", "answer": "||finalist|| cyst in the left kidney | cyst in the right kidney"},
        {"id": "x2", "answer": "nothing to report"},
    ]
    answers.write_text("\n".join(map(json.dumps, lines)) + "\n{broken")
    out = tmp_path / "items.jsonl"
    summary = json.loads(run("-i", reports, "-o", out, "--read-answers", answers, "--json").stdout)
    assert summary["answers used"] == 1
    assert summary["rejected"] == {"unsupported entry": 1, "no marker": 1, "malformed JSON": 1}
    assert [(row["items"], row["items_from"]) for row in read(out)] == [
        (["cyst in the left kidney"], "answer"),
        (["no significant abnormalities."], "rules"),
        ([], "rules"),
    ]
    rejected = read(tmp_path / "items.rejected.jsonl")
    assert [(row["line"], row["content"]) for row in rejected][1:] == [(2, "nothing to report"), (3, "{broken")]


def test_captions(tmp_path):
    row = {"filename": "a.jpg", "captions": ["a lake .", "a lake", "trees ."], "label": "Lake"}
    (tmp_path / "c.jsonl").write_text(json.dumps(row))
    out = tmp_path / "o.jsonl"
    run("-i", tmp_path / "c.jsonl", "-o", out, "--kind", "captions")
    assert read(out)[0]["items"] == ["a lake .", "trees ."] and read(out)[0]["label"] == "Lake"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-i", "{reports}"), "pass -o ITEMS.jsonl"),
        (("-i", "{reports}", "--write-prompts", "p", "--read-answers", "{reports}"), "--read-answers needs -o"),
        (("-i", "nowhere.csv", "-o", "{out}"), "there is no file or folder nowhere.csv"),
        (("-i", "{reports}", "-o", "{out}", "--domain", "knee"), "unknown domain 'knee'"),
        (("-i", "{reports}", "-o", "{out}", "--text-column", "body"), "no column 'body'"),
    ],
)
def test_errors_say_what_to_do(reports, tmp_path, arguments, message):
    done = run(*[a.format(reports=reports, out=tmp_path / "o.jsonl") for a in arguments], check=False)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
