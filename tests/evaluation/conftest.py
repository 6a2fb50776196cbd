"""A tiny model and its processor."""

import pytest
import torch


@pytest.fixture
def ready(make_model, tokenizer):
    """Brain MRI, weights moved away from their start, so that attention is not even."""
    from itemized_clip_hf import ItemizedCLIPProcessor

    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, processor
