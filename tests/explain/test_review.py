"""A second look at reports: what an item mentions, which questions follow from scores, and the verb from end to end."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from forked import run_forked as run
from tiny_models import ITEMS

from itemized_clip_hf.evaluation.calibration import CalibratedFinding, Calibration
from itemized_clip_hf.evaluation.estimates import Estimate
from itemized_clip_hf.evaluation.mentions import find_mentions
from itemized_clip_hf.evaluation.operating_points import OperatingPoint
from itemized_clip_hf.evaluation.scaling import Platt
from itemized_clip_hf.explain.review import (
    HIGH,
    LOW,
    MISSING,
    UNSUPPORTED,
    Reports,
    calibrated_thresholds,
    find_questions,
)

FINDINGS = {"mass": ["mass in the brain"], "cyst": ["cyst in the brain"], "bleed": ["bleed in the brain"]}


def test_items_mention_findings_by_their_words():
    """Whatever the text tower says; several findings of one item, plurals, and words of the template that name nothing."""
    items = ["two small masses", "cyst beside a bleed", "the brain is swollen", "massive oedema"]
    found = find_mentions(items, np.eye(4), FINDINGS, np.eye(3, 4)[::-1])
    assert found[0].tolist() == [True, False, False] and found[1].tolist() == [False, True, True]
    assert not find_mentions(items, -np.ones((4, 2)), FINDINGS, np.ones((3, 2)))[2:].any()


def test_items_without_the_words_mention_what_is_nearest_if_it_is_near():
    prompts = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0]])  # mass and cyst are alike: cosine 0.6
    near, far, other = [0.9, -0.4, 0.1], [0.5, -0.8, 0.4], [0, -0.6, 0.1]
    found = find_mentions(["tumour", "sinusitis", "haemorrhage"], np.array([near, far, other]), FINDINGS, prompts)
    assert found.tolist() == [[True, False, False], [False] * 3, [False, False, True]]
    assert find_mentions([], np.zeros((0, 3)), FINDINGS, prompts).shape == (0, 3)


def make_reports(seed=0, studies=200):
    """Scores that tell who has which finding, one mention taken out of study 3 and one put into study 5."""
    rng = np.random.default_rng(seed)
    present = rng.random((studies, 3)) < 0.4
    present[3], present[5] = [True, False, False], [False, True, False]
    scores = present + rng.normal(0, 0.1, present.shape)
    scores[3, 0], item_scores = 1.2, []
    mentions = present.copy()
    mentions[3], mentions[5] = False, [False, True, True]
    items = [[name for name, told in zip(FINDINGS, row) if told] or ["nothing"] for row in mentions]
    for number, own in enumerate(items):
        item_scores.append(
            np.array([scores[number, list(FINDINGS).index(one)] if one in FINDINGS else 1.0 for one in own])
        )
    nearest = (np.zeros(present.shape, int), np.full(present.shape, 0.25))
    ids = [f"s{number}" for number in range(studies)]
    return Reports(ids, items, FINDINGS, mentions, nearest, scores, item_scores)


def test_what_is_planted_is_asked_about():
    reports = make_reports()
    review = find_questions(reports, low=0.5, high=50)
    missing = [q for q in review.questions if q.kind == MISSING]
    unsupported = [q for q in review.questions if q.kind == UNSUPPORTED]
    assert [(q.study, q.text, q.nearest) for q in missing] == [("s3", "mass", "nothing")]
    told = reports.scores[reports.mentions[:, 0], 0]
    assert missing[0].threshold == pytest.approx(np.median(told))
    assert missing[0].percentile == pytest.approx(100 * (told < 1.2).mean())
    assert (unsupported[0].study, unsupported[0].text, unsupported[0].percentile) == ("s5", "bleed", 0)
    every = np.concatenate(reports.item_scores)
    assert len(unsupported) == (every < np.quantile(every, 0.005)).sum()
    content = review.to_dict()
    assert "Questions to a reader, not findings" in content["caution"] and json.dumps(content, allow_nan=False)
    assert content["thresholds"]["mass"]["source"].startswith("percentile 50 of the ")


def test_a_mentioned_finding_is_never_missing_and_silence_says_where_no_threshold_is():
    reports = make_reports(1)
    reports.mentions[:, 2] = False
    reports.mentions[:4, 2] = True
    review = find_questions(reports, high=0)
    assert np.isnan(review.high["bleed"]) and review.sources["bleed"] == "none: 4 reports mention it, 5 are needed"
    told = {(name, f) for name, row in zip(reports.ids, reports.mentions) for f, one in zip(FINDINGS, row) if one}
    asked = {(q.study, q.text) for q in review.questions if q.kind == MISSING}
    assert asked and not asked & told and not [f for _, f in asked if f == "bleed"]
    review = find_questions(reports, thresholds={"bleed": 0.5})
    assert review.sources["bleed"] == "calibration"
    above = {
        name
        for name, score, own in zip(reports.ids, reports.scores[:, 2], reports.mentions[:, 2])
        if score > 0.5 and not own
    }
    assert {q.study for q in review.questions if (q.kind, q.text) == (MISSING, "bleed")} == above
    with pytest.raises(ValueError, match="percentile from 0 to 100"):
        find_questions(reports, low=101)


def test_studies_without_scores_or_reports_are_not_asked_about():
    reports = make_reports(2)
    reports.scores[3], reports.item_scores[3] = np.nan, np.array([np.nan])
    reports.items[7], reports.item_scores[7] = [], np.zeros(0)
    review = find_questions(reports, low=100, high=0)
    assert review.studies == 198 and not {"s3", "s7"} & {q.study for q in review.questions}


def test_thresholds_of_a_calibration_are_of_the_findings_with_its_prompts():
    points = {"youden": OperatingPoint("youden", Estimate(0.3), Estimate(0.9), Estimate(0.9))}
    findings = {
        "A": CalibratedFinding(FINDINGS["mass"], 50, 50, scaling=Platt.fit([0, 1] * 50, np.arange(100)), points=points),
        "B": CalibratedFinding(["another cyst"], 50, 50, scaling=Platt.fit([0, 1] * 50, np.arange(100)), points=points),
    }
    calibration = Calibration("m", "p", "mine", "", {}, findings, "youden")
    found = calibrated_thresholds(calibration, FINDINGS)
    assert found == ({"mass": 0.3}, "operating point youden of the calibration by mine")
    assert calibrated_thresholds(None, FINDINGS)[0] == {}
    review = find_questions(make_reports(), LOW, HIGH, *found)
    assert review.high["mass"] == 0.3 and review.sources["mass"] == found[1]
    assert review.sources["cyst"].startswith("percentile 50")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    nibabel = pytest.importorskip("nibabel")
    pytest.importorskip("matplotlib.figure")  # here, once, rather than in every copy of this process
    import matplotlib.colors  # noqa: E401, F401

    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(8):
        values = rng.normal(100, 30, (20, 24, 10)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-2.0, 2.0, 6.0, 1.0])), folder / f"s{number}.nii.gz")
        items = ["left frontal mass", "enlarged ventricles"] if number < 6 else [ITEMS[3]]
        lines.append({"id": f"s{number}", "images": {"AX_T1": f"s{number}.nii.gz"}, "items": items})
    lines.append({"id": "gone", "images": {"AX_T1": "gone.nii.gz"}, "items": ["left frontal mass"]})
    lines.append({"id": "silent", "images": {"AX_T1": "s0.nii.gz"}, "items": []})
    (folder / "studies.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "prompts.yaml").write_text("mass: [frontal mass, left mass]\nventricles: [enlarged ventricles]\n")
    return folder


def review(model_folder, cohort, output, *more):
    asked = ["-m", model_folder, "-i", cohort / "studies.jsonl", "--prompts", cohort / "prompts.yaml", "-o", output]
    return run("review", *asked, "--high", "0", "--low", "5", *more, check=False)


def test_the_verb_from_end_to_end(model_folder, cohort, tmp_path):
    output = tmp_path / "review"
    done = review(model_folder, cohort, output, "--html")
    assert done.returncode == 1 and "2 studies could not be looked at" in done.stderr
    assert "gone: " in done.stderr and "silent: it has no items" in done.stderr
    content = json.loads((output / "review.json").read_text())
    assert {one["id"] for one in content["unreadable"]} == {"gone", "silent"} and content["studies"] == 8
    assert "Questions to a reader, not findings" in done.stdout
    questions = content["questions"]
    assert {q["kind"] for q in questions} == {MISSING, UNSUPPORTED}
    assert {q["study"] for q in questions if q["kind"] == MISSING} <= {"s6", "s7"}
    for question in questions:
        folder = output / question["folder"]
        entries = [
            one for one in json.loads((folder / "maps.json").read_text())["maps"] if one["item"] == question["question"]
        ]
        assert entries and all((folder / one["file"]).exists() for one in entries)
        assert entries[0]["similarity"] == pytest.approx(question["score"], abs=1e-5)
        assert list(folder.glob("*.png")) and "not findings" in (output / f"{question['folder']}.html").read_text()
    with (output / "review.csv").open() as file:
        assert [row["text"] for row in csv.DictReader(file)] == [q["text"] for q in questions]

    lines = (output / "scores.jsonl").read_text().splitlines(keepends=True)
    (output / "scores.jsonl").write_text("".join(lines[:4]) + lines[4][:10])  # killed while it wrote
    (output / "review.json").unlink()
    kept = output / questions[0]["folder"] / "maps.json"
    before = kept.stat().st_mtime_ns
    review(model_folder, cohort, output, "--html")
    again = json.loads((output / "review.json").read_text())
    assert again["questions"] == questions and kept.stat().st_mtime_ns == before
    other = review(model_folder, cohort, output, "--low", "50")
    assert other.returncode == 1 and "holds another review" in other.stderr
    both = review(model_folder, cohort, output, "--point", "youden")
    assert both.returncode == 2 and "leave one of them out" in both.stderr


def test_a_list_without_reports_is_refused(model_folder, cohort, tmp_path):
    done = run("review", "-m", model_folder, "-i", cohort / "s0.nii.gz", "-o", tmp_path / "out", check=False)
    assert done.returncode == 1 and "no study has items" in done.stderr


@pytest.mark.slow
def test_every_block_of_the_page(model_folder, cohort, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "review.md").read_text()
    monkeypatch.chdir(tmp_path)
    lines = (cohort / "studies.jsonl").read_text().splitlines()[:8]
    (tmp_path / "studies.jsonl").write_text("\n".join(lines).replace('"AX_T1": "', '"AX_T1": "cohort/'))
    for name, target in {"model": model_folder, "cohort": cohort, "prompts.yaml": cohort / "prompts.yaml"}.items():
        (tmp_path / name).symlink_to(target)
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(text, "review.md", "exec"), {})
        else:
            for line in text.strip().splitlines():
                run(*line.split()[1:])
    assert json.loads((tmp_path / "review" / "review.json").read_text())["studies"] == 8


def test_the_table_of_the_page_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark, common = __import__("review"), __import__("common")
    document = json.loads(benchmark.RESULTS.read_text())
    table = benchmark.DOCS.read_text().split(benchmark.MARK + "\n")[1].split("\n" + common.END_MARK)[0]
    assert table.split("\n") == benchmark.table_rows(document)
    assert document["the report misses this, auc"]["low"] > 0.9


def test_what_the_benchmark_plants(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    names = list(FINDINGS)
    cohort = []
    for number in range(60):
        own = [names[(number // 3 + one) % 3] for one in range(number % 3)]
        labels = {name: name in own for name in names}
        cohort.append(
            {"items": [f"{f} {number}" for f in own] or ["normal"], "findings": own or ["normal"], "labels": labels}
        )
    reports, omitted, added = __import__("review").plant(cohort, names, 0.4, 0)
    kinds = set()
    for study, items, row, flags in zip(cohort, reports, omitted, added):
        gone = [name for name, one in zip(names, row) if one]
        new = [text for text, one in zip(items, flags) if one]
        assert len(flags) == len(items) > 0 and len(gone) + len(new) <= 1
        assert all(study["labels"][name] and not any(name in text for text in items) for name in gone)
        assert all(not study["labels"][text.split()[0]] for text in new)
        assert (
            set(items) - set(new) == set(study["items"]) - {t for t in study["items"] if t.split()[0] in gone} or gone
        )
        kinds.add((len(gone), len(new)))
    assert kinds == {(0, 0), (1, 0), (0, 1)}
