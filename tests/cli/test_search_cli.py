"""`itemized-clip search` on a cohort of files."""

import json

import pytest
from click.testing import CliRunner
from cohorts import PROMPTS

pytest.importorskip("nibabel")
pytest.importorskip("pyarrow")

from itemized_clip_cli import main
from itemized_clip_hf.phantom import PhantomDataset, write_dataset

TEXT = "enlarged ventricles"


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_dataset(PhantomDataset("test", 6, shape=(8, 16, 16)), tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def cohort(studies, model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    path = folder / "cohort.parquet"
    done = run("embed", "-m", model_folder, "-i", studies, "-o", path, "--prompts", folder / "prompts.json", "--tokens")
    assert done.exit_code == 0, done.output
    return path


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), *(["--device", "cpu"] if arguments[0] == "embed" else [])])


def search(*arguments, code=0):
    done = run("search", *arguments)
    assert done.exit_code == code, done.output
    return done


def test_texts_are_ranked_as_predict_scores_them(cohort, studies, model_folder, tmp_path):
    sheet = tmp_path / "sheets" / "sheet.png"
    arguments = [cohort, "-m", model_folder, "--text", TEXT, "--top", "4", "--exhaustive"]
    found = json.loads(search(*arguments, "--json", "--sheet", sheet, "-i", studies).stdout)
    predicted = json.loads(run("predict", "-m", model_folder, "-i", studies, "-p", TEXT, "--json").stdout)
    scores = {row["id"]: row["scores"][TEXT] for row in predicted["results"]}
    for hit in found["hits"]:
        assert hit["score"] == pytest.approx(scores[hit["id"]], abs=2e-3)
    assert found["hits"][0]["score"] == pytest.approx(max(scores.values()), abs=2e-3)
    assert found["query"] == TEXT and found["candidates"] == found["studies"] == 6
    assert sheet.read_bytes().startswith(b"\x89PNG") and len(list(sheet.parent.iterdir())) == 1
    table = search(*arguments[:-1], "--candidates", "5").output
    assert "first stage" in table and "5 of 6 studies scored" in table


def test_studies_and_regions(cohort, studies, model_folder):
    found = json.loads(search(cohort, "--study", "test-0-000002", "--json").stdout)
    assert len(found["hits"]) == 5 and "test-0-000002" not in {hit["id"] for hit in found["hits"]}
    itself = studies.parent / "test-0-000002"
    new = json.loads(search(cohort, "--study", itself, "-m", model_folder, "--json").stdout)
    assert new["hits"][0]["id"] == "test-0-000002" and new["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    box = ["--region", "FLAIR:0-8,0-8,8-16"]
    found = json.loads(search(cohort, "--study", "test-0-000002", *box, "--json").stdout)
    assert len(found["hits"]) == 5 and {"scan", "voxel"} <= set(found["hits"][0])
    new = json.loads(search(cohort, "--study", itself, "-m", model_folder, *box, "--json").stdout)
    assert new["hits"][0]["id"] == "test-0-000002"  # left out above, where it was one of the cohort
    assert [hit["id"] for hit in new["hits"][1:]] == [hit["id"] for hit in found["hits"]]
    assert "largest cosine of a token" in search(cohort, "--study", "test-0-000002", *box).output


def test_duplicates_and_leaks(cohort, studies, model_folder, tmp_path):
    lines = [json.loads(line) for line in studies.read_text().splitlines()]
    copy = {**lines[4], "id": "copy"}
    (studies.parent / "test.jsonl").write_text(json.dumps(copy) + "\n")
    run("embed", "-m", model_folder, "-i", studies.parent / "test.jsonl", "-o", tmp_path / "test.parquet")
    arguments = [tmp_path / "test.parquet", "--against", cohort, "--threshold", "0.99999"]
    found = json.loads(search(*arguments, "--json").stdout)
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("copy", "test-0-000004")]
    assert "1 of 1 studies have a near-duplicate among 6 of the other cohort" in search(*arguments).output
    none = search(cohort, "--duplicates", "--threshold", "1").output
    assert "0 of 6 studies have a near-duplicate (cosine 1.0 or more)" in none and "quantiles" in none


def test_what_is_refused(cohort, studies, model_folder, tmp_path, make_model, processor):
    model = make_model(seed=3)
    model.config.domain = "brain-mri"
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    for arguments, code, told in (
        ([], 2, "pass one of --text, --study"),
        (["--text", TEXT, "--duplicates"], 2, "pass one of --text, --study"),
        (["--text", TEXT], 2, "--text needs the model"),
        (["--text", TEXT, "-m", tmp_path / "other"], 1, "the model is not the one that the cohort was embedded by"),
        (["--study", "nobody"], 1, "has no study 'nobody', and there is no such file"),
        (["--study", studies.parent / "test-0-000002"], 2, "has to be embedded: pass -m"),
        (["--study", "test-0-000002", "--region", "1,2,3"], 2, "'1,2,3' is no box"),
        (["--study", "test-0-000002", "--region", "T1:0-9,0-1,0-1"], 1, "does not lie in a scan of (8, 16, 16)"),
        (["--study", "test-0-000002", "--sheet", tmp_path / "s.png"], 2, "--sheet opens the studies"),
        (["--duplicates", "--index", tmp_path / "i"], 2, "near-duplicates are found exactly"),
        (["--text", TEXT, "--region", "0-1,0-1"], 2, "--region is of a study"),
    ):
        done = search(cohort, *arguments, code=code)
        assert told in " ".join(done.output.split()), done.output
    assert "is no cohort" not in search(cohort, "--duplicates").output
    done = search(studies, "--duplicates", code=1)
    assert "cannot be read as parquet" in done.output
