"""The recorded zero-shot tables, from recorded pixels and token ids through the protocol code."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from golden_cases import assert_close
from golden_models import picture_model, radiology_model
from transformers import BatchFeature

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation.protocols import Protocol, load_protocol
from itemized_clip_hf.evaluation.protocols.labels import Truth
from itemized_clip_hf.evaluation.protocols.summary import columns_of, summarize
from itemized_clip_hf.evaluation.zero_shot import score_studies


class Recorded:
    """Hands out recorded pixels and ids in the place of a processor."""

    def __init__(self, ids: dict[str, torch.Tensor]):
        self.ids = ids
        self.image_processor = SimpleNamespace(
            process_study=lambda study, on_error=None: study,
            collate=lambda studies, return_tensors: BatchFeature({"pixel_values": torch.stack(studies)}),
        )

    def __call__(self, text, return_tensors):
        ids = torch.stack([self.ids[one] for one in text])
        return BatchFeature({"input_ids": ids, "attention_mask": (ids != 0).long()})


def run(protocol, model, processor, pixels, truth):
    prompts = protocol.choose_prompts()
    labels, scores = score_studies(model, processor, list(pixels), columns_of(protocol, prompts), batch_size=5)
    assert labels == protocol.names
    return scores, summarize(protocol, prompts, scores, truth, resamples=0).to_dict()


def test_chest_ct_table():
    meta, io, model = radiology_model("hlip_singlescan_tiny", "chest-ct")
    protocol = load_protocol("ct-rate")
    assert protocol.names == meta["class_names"]
    texts = [prompts[0] for prompts in protocol.choose_prompts().values()]
    labels = io["in.zs.labels"].numpy()
    truth = Truth([str(number) for number in range(len(labels))], labels=labels.astype(float))
    processor = Recorded(dict(zip(texts, io["in.zs.prompt_ids"])))
    scores, figures = run(protocol, model, processor, io["in.zs.volumes"], truth)
    assert_close(scores, io["out.zs.logits"], "scores")
    words = {"auc": "auc", "(balanced)": "accuracy", "(weighted)": "weighted_f1"}
    words |= {"recall": "recall", "precision": "precision"}
    for name, recorded in meta["zero_shot_results"].items():
        own = figures["mean"] if name == "* mean" else figures["findings"][name]
        assert len(recorded) == 5
        for key, value in recorded.items():
            figure = words[key.removesuffix("0").split()[-1]]
            assert own[figure]["value"] == pytest.approx(value, abs=1e-9), (name, key)


@pytest.mark.parametrize("scoring", ["items", "global"])
def test_picture_table(scoring):
    meta, io, model = picture_model()
    model.config.scoring = scoring
    sets = [io["in.cls.prompt_ids_0"], io["in.cls.prompt_ids_1"]]
    ids = {f"{s} {c}": sets[s][c] for s in (0, 1) for c in range(len(sets[0]))}
    classes = {f"class {c}": [f"{s} {c}" for s in (0, 1)] for c in range(len(sets[0]))}
    labels = io["in.cls.labels"].numpy()
    truth = Truth([str(number) for number in range(len(labels))], classes=labels)
    scores, figures = run(Protocol("own", classes=classes), model, Recorded(ids), io["in.cls.images"], truth)
    recorded = {"items": "out.cls.logits", "global": "out.cls.logits_global"}[scoring]
    assert_close(scores, io[recorded], "scores")
    printed = {"items": "classify_printout_average_ensemble", "global": "classify_printout_global"}[scoring]
    found = {name: figure["value"] for name, figure in figures["mean"].items()}
    expected = dict(line.split(": ") for line in meta[printed])
    assert f"{found['top1']:.4f}" == expected["Classification Accuracy"]
    assert f"{found['top5']:.4f}" == expected["Top-5 Accuracy"]
    assert f"{found['mean_rank']:.4f}" == expected["Mean Rank"]
    assert np.isfinite(scores).all()
