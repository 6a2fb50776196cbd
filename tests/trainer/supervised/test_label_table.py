"""Labels of studies: from a table beside them or from their own list, and what is said where they do not fit."""

import json

import numpy as np
import pytest

from itemized_clip_hf.data.studies.records import Records
from itemized_clip_hf.trainer.supervised.label_table import balanced_weights, read_study_labels

STUDIES = [{"id": f"s{number}.nii.gz", "images": f"s{number}.nii.gz"} for number in range(4)]


@pytest.fixture
def table(tmp_path):
    def write(text: str):
        path = tmp_path / "labels.csv"
        path.write_text(text)
        return path

    return write


def test_a_table_is_matched_by_id(table):
    path = table("Study_ID,mass,bleed,age\ns2,1,0,61\ns0,0,,45\nother,1,1,20\ns3,,-1,70\n")
    found = read_study_labels(Records(STUDIES), path)
    assert found.names == ["bleed", "mass"] and found.problem_type == "multi_label_classification"
    assert found.numbers == [0, 2]  # the labels of s3 are unknown, s1 has no row
    np.testing.assert_array_equal(found.table, [[np.nan, 0], [0, 1]])
    assert found.counts() == {"bleed": 0, "mass": 1}
    assert any("1 ids belong to none of the studies, e.g. ['other']" in note for note in found.notes)
    assert any("2 of 4 studies have no label" in note for note in found.notes)
    assert read_study_labels(Records(STUDIES), path, names=["mass"]).names == ["mass"]


def test_a_column_of_classes(table, tmp_path):
    path = table("id,Diagnosis\ns0,glioma\ns1,stroke\ns2,glioma\ns3,\n")
    found = read_study_labels(Records(STUDIES), path)
    assert found.names == ["glioma", "stroke"] and found.problem_type == "single_label_classification"
    assert found.table.tolist() == [0, 1, 0] and found.numbers == [0, 1, 2]
    np.testing.assert_allclose(balanced_weights(found), [3 / 4, 3 / 2])
    unseen = table("id,Diagnosis\ns0,abscess\n")
    with pytest.raises(ValueError, match="'abscess': 1.*do not occur in training"):
        read_study_labels(Records(STUDIES), unseen, like=found)
    with pytest.raises(ValueError, match="expected the same kind"):
        read_study_labels(Records(STUDIES), table("id,glioma\ns0,1\n"), like=found)


def test_labels_of_the_list_itself(tmp_path):
    rows = [{**row, "mass": number % 2, "labels": {"bleed": 1}} for number, row in enumerate(STUDIES)]
    found = read_study_labels(Records(rows))
    assert found.names == ["mass", "bleed"] and found.table.tolist() == [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert balanced_weights(found) == [1, 1]  # as many; and nothing to balance
    again = read_study_labels(Records(rows), like=found)
    assert again.names == found.names
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(json.dumps({"id": row["id"], "mass": row["mass"]}) for row in rows))
    assert read_study_labels(Records(rows), path).names == ["mass"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("id,mass\ns0,1\ns0.nii.gz,1\n", "duplicate ids"),
        ("id,mass\nx,1\ny,0\n", "no id is that of a study: it has e.g. .'x', 'y'."),
        ("id,mass\ns0,\ns1,-1\n", "has no labels|every label of the studies is unknown"),
        ("id,age\ns0,61\n", "labels.csv has no labels"),
        ("number,mass\ns0,1\n", "no column of ids"),
        ("id,mass\ns0,0\ns1,1\n", "1 labels of labels.csv contradict those of the list of studies"),
    ],
)
def test_what_does_not_fit_is_refused(table, text, message):
    rows = [{**row, "mass": 1} if number == 0 else row for number, row in enumerate(STUDIES)]
    with pytest.raises(ValueError, match=message):
        read_study_labels(Records(rows), table(text))


def test_a_label_that_is_not_there(table):
    path = table("id,mass\ns0,1\ns1,0\n")
    with pytest.raises(ValueError, match="no column for the labels ..bleed.."):
        read_study_labels(Records(STUDIES), path, names=["bleed"])
    almost = table("id,mass,bleed\ns0,1,maybe\ns1,0,0\ns2,0,1\n")
    found = read_study_labels(Records(STUDIES), almost)
    assert found.names == ["mass"]
    assert any("'bleed' is not taken for a label: 1 of 3 cells" in note for note in found.notes)
