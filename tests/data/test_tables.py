"""Tables as spreadsheets, data frames and people write them: every cell is what was meant, or one clear error."""

import csv
import json
import math

import numpy as np
import pytest

from itemized_clip_hf.data.cells import as_items, as_labels, neutralize, restore
from itemized_clip_hf.data.studies.records import read_records
from itemized_clip_hf.data.tables import read_table, write_csv
from itemized_clip_hf.data.truth_values import read_truth_value
from itemized_clip_hf.trainer.collator import ItemizedCLIPCollator


@pytest.mark.parametrize(
    "value", [True, 1, 1.0, np.bool_(True), np.int8(1), "True", "TRUE", " yes", "1", "1.0", "1,0", "t"]
)
def test_true(value):
    assert read_truth_value(value, "x") is True


@pytest.mark.parametrize("value", [False, 0, 0.0, -0.0, np.bool_(False), "False", "no", "0", "0.0", "0,00", "F", "N"])
def test_false(value):
    assert read_truth_value(value, "x") is False


@pytest.mark.parametrize(
    "value", [None, "", " ", math.nan, "nan", "NaN", "None", "null", "N/A", -1, "-1", -1.0, "-1.0"]
)
def test_unknown(value):
    assert read_truth_value(value, "x") is None


@pytest.mark.parametrize("value", [2, 0.5, "0.5", "maybe", "10", "1e0", [1], "falsch", "0/1"])
def test_no_truth_value(value):
    with pytest.raises(ValueError, match="t.csv, study 7: .* expected 0 or 1"):
        read_truth_value(value, "t.csv, study 7: 'mass'")


@pytest.mark.parametrize(
    "written, normal", [("False", False), ("no", False), ("0.0", False), ("yes", True), ("", True)]
)
def test_is_normal_of_a_csv_file(tmp_path, written, normal):
    (tmp_path / "list.csv").write_text(f"id,items,is_normal\na,mass,{written}\n")
    record = read_records(tmp_path / "list.csv")[0]
    collator = ItemizedCLIPCollator(None, is_normal=lambda items: True)  # the rule, where nothing is stated
    assert collator.flag(record["items"], record.get("is_normal")) is normal
    assert collator.flag(record["items"], written) is normal


ITEMS = ["left frontal glioma.", 'the patient\'s "old" bleed', "mild\nshift", "a, b", "ünïcode"]


@pytest.mark.parametrize(
    "write",
    [
        json.dumps,
        str,
        lambda items: str(np.array(items)),
        lambda items: str(np.array(items, object)),
        lambda i: str(tuple(i)),
    ],
)
def test_a_list_in_a_cell(tmp_path, write):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "items"], ["1", write(ITEMS)], ["2", write([])], ["3", write(["one"])]])
    records = read_records(tmp_path / "list.csv")
    assert list(records.items()) == [ITEMS, [], ["one"]]
    assert records[0]["items"] == ITEMS


def test_lists_as_pandas_writes_them(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": ["007", "1e5", "True"], "items": [ITEMS, ["x"], [None, "y"]]})
    frame["is_normal"] = [False, True, None]
    frame.to_csv(tmp_path / "list.csv")  # with the index, a column without a name
    records = list(read_records(tmp_path / "list.csv"))
    assert [record["id"] for record in records] == ["007", "1e5", "True"]
    assert [record["items"] for record in records] == [ITEMS, ["x"], ["y"]]
    assert [record.get("is_normal") for record in records] == [False, True, None]


@pytest.mark.parametrize(
    "cell",
    ["['a' 'b' ... 'z']", "[left mass, right mass]", "['a', 'b' 'c']", "[['a'], ['b']]", "array(['a'], dtype=object)",
     "[1, 2]", '{"a": "b"}', "['a', b]", "['a"],
)  # fmt: skip
def test_lists_that_cannot_be_read_are_refused_or_stay_whole(cell):
    if cell == "['a":  # no list at all: one item as it is
        assert as_items(cell) == ["['a"]
        return
    with pytest.raises(ValueError, match="like a list"):
        as_items(cell)


def test_what_is_no_list_stays():
    assert as_items("[left] mass [right]") == ["[left] mass [right]"]
    assert as_items("(old) bleed (left)") == ["(old) bleed (left)"]
    assert as_items(["a", "nan", "None", "N/A", math.nan, "Not given."]) == ["a"]
    with pytest.raises(ValueError, match="type int, expected a text"):
        as_items(["a", 5])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_marks_of_excel(tmp_path, separator, encoding):
    rows = [
        ["ID", "items", "is_normal"],
        ["007", "mass, 3,5 cm; left\tside", "0"],
        ["2024-01-05", "x_x000D_\ny", "1"],
        ["", "", ""],
    ]
    with (tmp_path / "list.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    records = list(read_records(tmp_path / "list.csv"))
    assert [record["id"] for record in records] == ["007", "2024-01-05"]
    assert records[0]["items"] == ["mass, 3,5 cm; left\tside"] and records[0]["is_normal"] is False
    assert records[1]["items"] == ["x\ny"]


def test_other_forms_of_tables(tmp_path):
    (tmp_path / "a.csv").write_text('sep=;\nid;items\n="007";"a,b"\n')
    assert read_table(tmp_path / "a.csv") == [{"id": "007", "items": "a,b"}]
    (tmp_path / "b.TSV").write_text("id\titems\n1\ta;b,c\n")
    assert read_table(tmp_path / "b.TSV") == [{"id": "1", "items": "a;b,c"}]
    (tmp_path / "c.CSV").write_text("id,items,,\n1,a,,\n")  # empty columns behind the last
    assert read_table(tmp_path / "c.CSV") == [{"id": "1", "items": "a"}]


@pytest.mark.parametrize(
    "content, message",
    [
        ("id,items,items\n1,a,b\n", r"duplicate columns \['items'\]"),
        ("id,items\n1,a\n2,a,b\n", "row 3: it has 3 fields"),
        ("id,items\n1\n", "row 2: it has 1 fields"),
        ('id,items\n1,"a\n2,b\n', "no CSV"),
        ("id;items,x\n1;a,b\n", "may part its columns"),
        ("", "is empty"),
        ("id,items\n", "is empty"),
        (b"id,items\n1,\xfc\n", "save it as UTF-8"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "t.csv")


def test_long_fields_leave_the_limit_of_the_process(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "t.csv").write_text(f"id,items\n1,{'x' * (limit + 5)}\n")
    assert len(read_table(tmp_path / "t.csv")[0]["items"]) == limit + 5
    assert csv.field_size_limit() == limit


def test_ids_stay_text_and_are_never_missing(tmp_path):
    ids = ["007", "1e5", "True", "2024-01-05", "-12", "+3", "=1+1", "'x", "'=x", "@a", "1.10", "nan", "é", "\tx", "-a"]
    write_csv(tmp_path / "t.csv", [["id", "items"], *[[name, "mass"] for name in ids]])
    assert [record["id"] for record in read_records(tmp_path / "t.csv")] == ids
    (tmp_path / "t.jsonl").write_text('{"id": null, "items": ["a"]}\n{"items": ["b"]}\n{"id": "", "items": ["c"]}\n')
    assert [record["id"] for record in read_records(tmp_path / "t.jsonl")] == ["row-1", "row-2", "row-3"]
    (tmp_path / "u.jsonl").write_text('{"items": ["a"]}\n{"items": ["b"]}\n')  # no column of ids
    assert [record["id"] for record in read_records(tmp_path / "u.jsonl")] == ["0", "1"]


def test_formulas_are_marked_and_read_back():
    dangerous = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\uff1d1", "'=1", "''=1"]
    for text in dangerous:
        assert neutralize(text) == f"'{text}" and restore(neutralize(text)) == text
    for plain in ["-0.12", "+5", "-1e-5", "-12,5", -0.12, None, "mass", "'quoted'", "a=b"]:
        assert neutralize(plain) == plain
        assert not isinstance(plain, str) or restore(plain) == plain


def test_labels_written_as_text(tmp_path):
    assert as_labels('{"mass": 1, "bleed": null, "cyst": -1}', "s") == {"mass": True, "bleed": None, "cyst": None}
    assert as_labels("{'mass': False}", "s") == {"mass": False}
    assert as_labels("nan", "s") == {}
    with pytest.raises(ValueError, match="`labels` is of type str"):
        as_labels("mass", "s")
    with pytest.raises(ValueError, match="study s: the label 'mass' is 2"):
        as_labels({"mass": 2}, "s")
