"""The probe finds what is linear in the features, and nothing in noise."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.evaluation.linear_probe import extract_features, probe


def test_features_by_hand(make_model, tokenizer):
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    model = make_model()
    generator = np.random.default_rng(0)
    studies = [[generator.normal(size=(6, 16, 16)).astype(np.float32) for _ in range(1 + i % 2)] for i in range(3)]
    lost = []
    rows = extract_features(
        model, processor, [*studies, [np.full((4, 8, 8), np.nan, np.float32)]], 2, on_error=lambda n, e: lost.append(n)
    )
    assert rows.shape == (4, 32) and lost == [3] and np.isnan(rows[3]).all()
    for row, study in zip(rows, studies):
        with torch.no_grad():
            out = model.encode_images(processor(images=[study], return_tensors="pt")["pixel_values"])
        for part, expected in zip((row[:16], row[16:]), (out[0][0], out[1][0].mean(0))):
            np.testing.assert_allclose(part, expected / expected.norm(), atol=2e-5)


def test_planted_findings():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(300, 12)).astype(np.float32)
    labels = np.stack([features[:, 0] + 0.1 * generator.normal(size=300) > 0, generator.random(300) < 0.5], 1).astype(
        float
    )
    labels[5, 0] = np.nan
    features[7] = np.nan
    found = probe(features[:200], labels[:200], features[200:], labels[200:], ["linear", "noise"], resamples=100)
    assert found["linear"]["auc"]["value"] > 0.97 and abs(found["noise"]["auc"]["value"] - 0.5) < 0.2
    assert found["linear"]["auc"]["low"] <= found["linear"]["auc"]["value"] <= found["linear"]["auc"]["high"]
    with pytest.raises(ValueError, match="too few for 5 folds"):
        probe(features[:200], np.zeros((200, 1)), features[200:], labels[200:], ["never"])
