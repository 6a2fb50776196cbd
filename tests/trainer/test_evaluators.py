"""Figures during training: logged, the same as afterwards, and able to choose the best checkpoint."""

import csv
import json

import numpy as np
import pytest
import torch
from tiny_models import ITEMS
from trainers import dataset, make_trainer
from transformers import TrainerCallback

pytest.importorskip("sklearn")
nibabel = pytest.importorskip("nibabel")

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.evaluation.evaluate import evaluate_protocol
from itemized_clip_hf.evaluation.evaluators import ItemEvaluator, ProtocolEvaluator
from itemized_clip_hf.evaluation.protocols import Protocol


@pytest.fixture
def processor(tokenizer):
    return ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16)


class Planted:
    """Figures that are best at the second evaluation."""

    def __init__(self):
        self.calls = []

    def __call__(self, model, processor):
        assert not model.training
        self.calls.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        torch.rand(100)  # its draws are no business of the training
        return {"planted": {1: 0.2, 2: 0.9}.get(len(self.calls), 0.5)}


def test_best_checkpoint_by_an_evaluator(processor, tmp_path):
    planted = Planted()
    settings = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_planted", "greater_is_better": True}
    trainer = make_trainer(processor, tmp_path / "a", evaluators=[planted], logging_steps=1, **settings, **best)
    seen = []

    class Listener(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(metrics["eval_planted"])

    trainer.add_callback(Listener())
    trainer.train()
    assert seen[:3] == [0.2, 0.9, 0.5]
    logged = [entry["eval_planted"] for entry in trainer.state.log_history if "eval_planted" in entry]
    assert logged[:3] == [0.2, 0.9, 0.5] and trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    state = trainer.model.state_dict()
    assert all(torch.equal(tensor, planted.calls[1][name]) for name, tensor in state.items())
    # The training itself does not notice.
    alone = make_trainer(processor, tmp_path / "b", logging_steps=1, max_steps=3)
    alone.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (trainer, alone)]
    assert losses[0] == losses[1]


def test_the_same_code_as_afterwards(processor, tmp_path):
    generator = np.random.default_rng(0)
    for name in [f"s{n}" for n in range(6)]:
        (tmp_path / "data" / name).mkdir(parents=True)
        array = np.abs(generator.normal(100, 30, (16, 16, 8))).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 6, 1])), tmp_path / "data" / name / "T1.nii.gz")
    with (tmp_path / "data" / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "mass"], *([f"s{n}", n % 2] for n in range(6))])
    protocol = Protocol("my-own", domain="brain-mri", findings={"mass": ITEMS[0]}, tables={"": "*.csv"})
    rows = [{"images": list(row["pixel_values"][:, 0].numpy()), "items": row["items"]} for row in dataset(8)]
    trainer = make_trainer(
        processor,
        tmp_path / "run",
        evaluators=[ProtocolEvaluator(protocol, tmp_path / "data"), ItemEvaluator(rows, most=5)],
    )
    trainer.train()
    found = trainer.evaluate()
    trainer.save_model(str(tmp_path / "model"))
    model = ItemizedCLIPModel.from_pretrained(tmp_path / "model").eval()
    later = evaluate_protocol(model, processor, protocol, tmp_path / "data", resamples=0).results
    assert found["eval_my_own_auc"] == pytest.approx(later["tables"][""]["mean"]["auc"]["value"])
    assert found["eval_my_own_headline"] == found["eval_my_own_auc"]
    items = ItemEvaluator(rows, most=5)(model, processor)
    assert {name: found[f"eval_{name}"] for name in items} == pytest.approx(items, nan_ok=True)
    assert {"items_MLL", "items_mAMS", "items_mean_rank", "items_T2I@1"} <= set(items)
    json.dumps(trainer.state.log_history)


def test_evaluators_need_the_whole_model(processor, tmp_path):
    with pytest.raises(ValueError, match="evaluators need the whole model"):
        make_trainer(processor, tmp_path, evaluators=[Planted()], fsdp=True, fsdp_config={"version": 2})
