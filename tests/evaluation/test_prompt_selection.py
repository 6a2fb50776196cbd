"""Choosing prompts: held-out figures that do not flatter, planted phrasings that are found, and the verb from end to end."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from forked import run_forked as run
from labeled_files import write_labeled_studies

pytest.importorskip("sklearn")

from sklearn.metrics import roc_auc_score

from itemized_clip_hf.data.tables import read_table
from itemized_clip_hf.evaluation import bootstrap as boot
from itemized_clip_hf.evaluation.prompt_bank import Bank, PromptChoice, choice_notes, hash_ids, is_test_split
from itemized_clip_hf.evaluation.prompt_selection import EnsembleScores, choose_ensemble, list_ensembles, select
from itemized_clip_hf.evaluation.protocols import Protocol, load_protocol
from itemized_clip_hf.specs import read_choice, read_prompts


def make_scores(seed, signal, studies=160, largest=2):
    """Phrasings that each see the truth with noise of their own; an ensemble's score is their mean."""
    rng = np.random.default_rng(seed)
    labels = rng.random(studies) < 0.4
    single = rng.normal(size=(studies, len(signal))) + np.outer(labels, signal)
    ensembles = list_ensembles(len(signal), largest, (0,))
    table = np.stack([single[:, list(one)].mean(1) for one in ensembles], 1).round(1)  # ties, too
    return EnsembleScores(labels, table, ensembles, (0,))


def test_auc_is_that_of_scikit_learn():
    scores = make_scores(0, [0.5, 1.0, 0.0])
    rows = np.arange(10, 90)
    for number, ensemble in enumerate(scores.ensembles):
        expected = roc_auc_score(scores.labels[rows], scores.table[rows, number])
        assert scores.auc(ensemble, rows) == pytest.approx(expected)


def test_the_default_is_a_candidate_whatever_its_size():
    assert list_ensembles(3, 1, (0, 1)) == [(0,), (1,), (2,), (0, 1)]
    scores = EnsembleScores(np.arange(40) % 2, np.tile(np.arange(40)[:, None], 4), list_ensembles(3, 1, (0, 1)), (0, 1))
    assert select(scores).chosen == (0, 1)  # all are alike


def test_what_is_worth_nothing_is_not_told_to_be_worth_something():
    """Of phrasings that see nothing, the best of the same studies looks better than the default; on held-out ones it is not."""
    flattering, held_out = [], []
    for seed in range(20):
        scores = make_scores(seed, [0.0] * 5)
        rows = np.arange(len(scores.labels))
        flattering.append(max(scores.auc(one, rows) for one in scores.ensembles) - scores.auc((0,), rows))
        held_out.append(select(scores, folds=4).held_out["difference"].value)
    error = np.std(held_out) / len(held_out) ** 0.5
    assert np.mean(flattering) > 0.04 and abs(np.mean(held_out)) < 3 * error


def test_a_planted_phrasing_and_a_planted_pair_are_found():
    better = make_scores(1, [0.3, 2.0, 0.0])
    found = select(better, boot.draw_counts(len(better.labels), 200))
    assert 1 in found.chosen and all(1 in one for one in found.by_fold)
    assert found.held_out["difference"].low > 0.1
    pair = make_scores(2, [1.2, 1.2, -1.0], studies=400)
    assert select(pair).chosen == (0, 1)
    worse = make_scores(3, [2.0, 0.2, 0.0], largest=1)
    found = select(worse)
    assert found.chosen == (0,) and found.held_out["difference"].value == 0


def test_held_out_figures_are_the_pairs_within_folds():
    from sklearn.model_selection import StratifiedKFold

    scores = make_scores(4, [0.3, 1.0, 0.8])
    found = select(scores, folds=4, seed=7)
    folds = StratifiedKFold(4, shuffle=True, random_state=7).split(scores.labels, scores.labels)
    sums = {"default": 0.0, "chosen": 0.0}
    pairs = 0
    for (seen, held), by_fold in zip(folds, found.by_fold):
        assert by_fold == choose_ensemble(scores, seen, 4, 7)
        labels = scores.labels[held]
        weight = labels.sum() * (~labels).sum()
        pairs += weight
        for name, ensemble in {"default": (0,), "chosen": by_fold}.items():
            sums[name] += weight * roc_auc_score(labels, scores.table[held, scores.ensembles.index(ensemble)])
    for name, total in sums.items():
        assert found.held_out[name].value == pytest.approx(total / pairs)


def test_few_studies_choose_nothing():
    scores = make_scores(5, [0.0, 3.0], studies=20)
    assert scores.labels.sum() < 10 and select(scores).chosen == (0,) and not select(scores).held_out


def test_a_bank_starts_with_the_default_and_refuses_what_it_cannot_choose():
    protocol = Protocol("mine", findings={"mass": ["a mass", "mass"], "cyst": None})
    bank = Bank.of({"mass": ["a tumour", "mass"], "cyst": ["cyst", "a cyst"]}, protocol, largest=1)
    assert bank.phrasings == {"mass": ["a mass", "mass", "a tumour"], "cyst": ["cyst", "a cyst"]}
    assert bank.default == {"mass": 2, "cyst": 1}
    assert list(bank.columns().values())[:4] == [["a mass"], ["mass"], ["a tumour"], ["a mass", "mass"]]
    with pytest.raises(ValueError, match="has no"):
        Bank.of({"nodule": ["a", "b"]}, protocol)
    with pytest.raises(ValueError, match="nothing to choose"):
        Bank.of({"cyst": "cyst"}, protocol)
    with pytest.raises(ValueError, match="smaller --largest"):
        Bank.of({"cyst": [str(n) for n in range(70)]}, protocol, largest=4)


def test_test_splits_are_known_by_their_tables(tmp_path):
    ct_rate = load_protocol("ct-rate")
    assert is_test_split(ct_rate, tmp_path, None)  # what `evaluate` would find there
    assert is_test_split(ct_rate, tmp_path, "dataset_valid_predicted_labels.csv")
    assert not is_test_split(ct_rate, tmp_path, "dataset_train_predicted_labels.csv")
    assert not is_test_split(load_protocol("rad-chestct"), tmp_path, "my_labels.csv")
    assert is_test_split(load_protocol("rsicd"), tmp_path / "test-0000.parquet", None)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    pytest.importorskip("nibabel")
    folder = write_labeled_studies(tmp_path_factory.mktemp("labeled"), 24)
    rows = {row["id"]: row for row in read_table(folder / "labels.csv")}
    with (folder / "list.jsonl").open("w") as file:
        for line in (folder / "studies.jsonl").read_text().splitlines():
            entry = json.loads(line)
            labels = {name: int(rows[entry["id"]][name]) for name in ("large", "coin")}
            file.write(json.dumps({**entry, "labels": labels}) + "\n")
        file.write(json.dumps({"id": "gone", "images": {"AX_T1": "gone.nii.gz"}, "labels": {"large": 1}}) + "\n")
    (folder / "bank.yaml").write_text("large: [left frontal mass, enlarged ventricles]\ncoin: [small bleed]\n")
    (folder / "own.yaml").write_text("findings: [large, coin]\ntables: {'': 'labels.csv'}\n")
    return folder


def choose(model_folder, studies, output, *more, check=True):
    return run(
        "prompts", "-m", model_folder, "-i", studies / "list.jsonl", "--bank", studies / "bank.yaml", "-o", output,
        "--resamples", "20", *more, check=check,
    )  # fmt: skip


def test_the_verb_from_end_to_end(model_folder, studies, tmp_path):
    output = tmp_path / "chosen.yaml"
    done = choose(model_folder, studies, output)
    assert "gone: " in done.stderr and "had no say" in done.stdout
    prompts, chosen = read_prompts(output), read_choice(output)
    assert set(prompts) == {"large", "coin"} and prompts["coin"] == ["small bleed"]
    assert chosen["studies"]["count"] == 25 and chosen["on_test_labels"] is False
    results = json.loads((tmp_path / "chosen.results.json").read_text())
    assert [row["id"] for row in results["unreadable"]] == ["gone"]
    assert len(results["findings"]["large"]["chosen_without_each_fold"]) == 5

    again = choose(model_folder, studies, output, check=False)
    assert "--overwrite" in again.stderr
    scores = tmp_path / "chosen.scores.jsonl"
    lines = scores.read_text().splitlines(keepends=True)
    scores.write_text("".join(lines[:9]) + lines[9][:20])  # killed while it wrote
    choose(model_folder, studies, output, "--overwrite")
    assert json.loads((tmp_path / "chosen.results.json").read_text()) == results
    assert {json.loads(line)["id"] for line in scores.read_text().splitlines()[1:]} >= {f"s{n}" for n in range(24)}

    predicted = run("predict", "-m", model_folder, "-i", studies / "s1.nii.gz", "--prompts", output, "--json").stdout
    assert set(json.loads(predicted)["results"][0]["scores"]) == {"large", "coin"}


def test_whoever_evaluates_the_same_studies_is_warned(model_folder, studies, tmp_path):
    output = tmp_path / "chosen.json"
    choose(model_folder, studies, output)
    asked = ["evaluate", "-m", model_folder, "--protocol", studies / "own.yaml", "--resamples", "0", "--no-plots"]
    asked += ["-i", studies, "--prompts", output]
    done = run(*asked, "-o", tmp_path / "same.json")
    notes = json.loads((tmp_path / "same.json").read_text())["notes"]
    assert [note for note in notes if "CHOSEN ON TEST LABELS" in note and "24 of these 24" in note]
    assert "CHOSEN ON TEST LABELS" in done.stdout


def test_without_scores_beside_it_a_file_knows_its_list_and_its_model(tmp_path):
    file, ids = tmp_path / "chosen.json", [f"s{n}" for n in range(24)]

    def notes(of, model="mine", on_test=False):
        chosen = {"studies": {"ids_sha256": hash_ids(of)}, "model": {"sha256": model}, "on_test_labels": on_test}
        file.write_text(json.dumps({"prompts": {"mass": ["a mass"]}, "chosen": chosen}))
        return choice_notes(file, ids, "mine")

    (same,) = notes([f"S{n}.nii.gz" for n in reversed(range(24))])
    assert "CHOSEN ON TEST LABELS" in same and "24 of these 24" in same
    assert notes(ids[1:]) == [] and "another model" in notes(ids[1:], "another")[0]
    assert "CHOSEN ON TEST LABELS" in notes(ids[1:], on_test=True)[0]
    (tmp_path / "chosen.scores.jsonl").write_text('{"model": 1}\n{"id": "s3", "scores": [1]}\n{"id": "s4", "err')
    assert "1 of these 24" in notes(["others"])[0]
    file.write_text(json.dumps({"mass": ["a mass"]}))
    assert choice_notes(file, ids, "mine") == []


def test_choosing_on_the_studies_of_a_test_is_said_loudly(model_folder, studies, tmp_path):
    output = tmp_path / "chosen.yaml"
    asked = ["prompts", "-m", model_folder, "--bank", studies / "bank.yaml", "-o", output, "--resamples", "0"]
    done = run(*asked, "-i", studies, "--protocol", studies / "own.yaml")
    assert "CHOSEN ON TEST LABELS" in done.stdout and "CHOSEN ON TEST LABELS" in done.stderr
    assert yaml.safe_load(output.read_text())["chosen"]["on_test_labels"] is True


def test_every_block_of_the_page(model_folder, studies, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, target in {"model": model_folder, "validation": studies, "bank.yaml": studies / "bank.yaml"}.items():
        (tmp_path / name).symlink_to(target)
    lines = (studies / "studies.jsonl").read_text().splitlines()[:2]
    (tmp_path / "studies.jsonl").write_text("\n".join(lines).replace('"AX_T1": "', '"AX_T1": "validation/'))
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if kind == "python":
            exec(compile(text.replace('bank.yaml"))', 'bank.yaml"), resamples=0)'), "prompts.md", "exec"), {})
        else:
            for line in text.strip().splitlines():
                run(*line.split()[1:])
    assert read_prompts("prompts.yaml").keys() == read_prompts("chosen.yaml").keys() == {"large", "coin"}


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_texts_that_look_like_numbers_stay_texts(tmp_path, suffix):
    prompts = {"lesion": ["1e5", "2026-11-29", "yes"]}
    PromptChoice(prompts, {}, {"model": {"sha256": "1234e5678"}}).write(tmp_path / f"chosen.{suffix}")
    assert read_prompts(tmp_path / f"chosen.{suffix}") == prompts
    assert read_choice(tmp_path / f"chosen.{suffix}") == {"model": {"sha256": "1234e5678"}}
