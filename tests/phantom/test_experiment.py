"""What the demo's figures are made of: examples, scores and the pointing game."""

import numpy as np
import pytest
import torch

from itemized_clip_hf.evaluation.grounding import PointingGame
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.explain.maps import explain_study
from itemized_clip_hf.phantom import COARSE_SHAPE, ZERO_SHOT_PROMPTS, PhantomDataset, experiment
from itemized_clip_hf.recipes import load_recipe
from itemized_clip_hf.trainer.from_recipe import build_model, build_processor


@pytest.fixture(scope="module")
def studies():
    return list(PhantomDataset("test", 14, shape=COARSE_SHAPE))


@pytest.fixture(scope="module")
def model_and_processor(studies):
    recipe = load_recipe("phantom").variant("coarse")
    processor = build_processor(recipe, [study.items for study in studies])
    return build_model(recipe, processor.tokenizer, seed=1).eval(), processor


def test_results_are_those_of_scores_and_heat_maps(studies, model_and_processor, tmp_path, monkeypatch):
    from sklearn.metrics import roc_auc_score

    monkeypatch.setattr(experiment, "DRAWN_STUDIES", 0)  # tests/cli/test_demo.py looks at pictures

    results = experiment.evaluate_phantom(*model_and_processor, studies, tmp_path)
    labels, scores = score_studies(*model_and_processor, map(experiment.as_scans, studies), ZERO_SHOT_PROMPTS)
    game = PointingGame()
    for study in studies:
        if not study.is_normal:
            maps = explain_study(*model_and_processor, experiment.as_scans(study), study.items)
            for number, (finding, mask) in enumerate(zip(study.item_findings, study.masks)):
                game.add(finding, maps[4 * number : 4 * number + 4], [mask] * 4)
    for column, name in enumerate(labels):
        truth = [study.labels[name] for study in studies]
        found = results.findings[name]
        assert found.auc == pytest.approx(roc_auc_score(truth, scores[:, column]))
        assert found.positive == sum(truth)
        assert (found.pointing, found.chance) == pytest.approx(game.rates([name])[1:])
        assert found.localised == (name in ("mass", "cyst", "bleed", "white_matter_lesion"))
    local = [name for name, found in results.findings.items() if found.localised]
    assert (results.pointing, results.chance) == pytest.approx(game.rates(local)[1:])
    assert results.mean_auc == pytest.approx(np.mean([found.auc for found in results.findings.values()]))


def test_processes_generate_what_one_does(model_and_processor, monkeypatch):
    dataset = PhantomDataset("train", 5, seed=4, shape=COARSE_SHAPE)
    alone = experiment.generate_examples(dataset, model_and_processor[1].image_processor)
    monkeypatch.setattr(experiment, "MIN_STUDIES_FOR_WORKERS", 1)
    shared = experiment.generate_examples(dataset, model_and_processor[1].image_processor)
    for study, one, other in zip(dataset, alone, shared, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and one["pixel_values"].shape[0] == 4
        assert (one["id"], one["items"]) == (other["id"], other["items"]) == (study.id, study.items)
