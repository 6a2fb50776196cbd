"""Batches that are uneven in everything, and the gradients of a model for them."""

import torch
from tiny_models import tiny_config

from itemized_clip_hf import ItemizedCLIPModel
from itemized_clip_hf.trainer.cached import cached_encoding
from itemized_clip_hf.trainer.objectives import StudyTextObjective, load_objective


def build(objective="itemized_clip", text="bert", dropout=0.0, dtype=torch.double, **vision):
    """Model in training mode with an objective attached, and its objective."""
    torch.manual_seed(0)
    config = tiny_config(text=text, use_scan_name_encoder=True, scan_name_hidden_size=32, **vision)
    config.vision_config.attention_dropout = config.vision_config.drop_path_rate = dropout
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config.text_config, name):
            setattr(config.text_config, name, dropout)
    model = ItemizedCLIPModel(config).to(dtype).train()
    loss = load_objective(objective)
    loss.attach(model)
    return model, loss


def make_batch(objective, count=6, slots=3, dtype=torch.double, seed=0):
    """Uneven in everything: scans, items, lengths of texts and of sequence names."""
    generator = torch.Generator().manual_seed(seed)
    joined = isinstance(objective, StudyTextObjective)
    slots = 1 if joined else slots
    lengths = torch.randint(3, 9, (count, slots), generator=generator)
    item_mask = torch.arange(slots) < torch.randint(1, slots + 1, (count, 1), generator=generator)
    attention_mask = (torch.arange(12) < lengths[..., None]) & item_mask[..., None]
    input_ids = torch.randint(5, 110, (count, slots, 12), generator=generator)
    last = attention_mask & ~torch.nn.functional.pad(attention_mask, (0, 1))[..., 1:]
    ends = torch.randint(1, 10, (count, 2, 1), generator=generator)
    letters = torch.randint(1, 40, (count, 2, 10), generator=generator)
    names = letters.masked_fill(torch.arange(10) == ends, 46).masked_fill(torch.arange(10) > ends, 0)
    return {
        "pixel_values": torch.randn(count, 2, 1, 8, 16, 16, generator=generator, dtype=dtype),
        "scan_mask": torch.arange(2) < torch.randint(1, 3, (count, 1), generator=generator),
        "scan_name_ids": names,
        "input_ids": input_ids.masked_fill(last, 119),
        "attention_mask": attention_mask.long(),
        "item_mask": item_mask,
        "is_normal": torch.rand(count, generator=generator) < 0.4,
    }


def loss_and_gradients(model, batch, micro_batch_size=None, seed=1, scale=1.0):
    model.zero_grad()
    torch.manual_seed(seed)
    if micro_batch_size is None:
        loss = model(**batch, return_loss=True, return_logits=False).loss
    else:
        with cached_encoding(model, micro_batch_size, min_texts=2):
            loss = model(**batch, return_loss=True, return_logits=False).loss
    state = torch.get_rng_state()
    (loss * scale).backward()
    assert torch.equal(state, torch.get_rng_state())
    return loss.detach(), {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def compare(expected, got, tolerance):
    torch.testing.assert_close(got[0], expected[0], rtol=tolerance, atol=0)
    largest = max(g.abs().max() for g in expected[1].values() if g is not None)
    for name, gradient in expected[1].items():
        assert (gradient is None) == (got[1][name] is None), name
        if gradient is not None:
            bound = tolerance * max(gradient.abs().max().item(), 1e-3 * largest.item())
            assert (got[1][name] - gradient).abs().max() <= bound, name
    assert sum(g is not None and bool(g.abs().max() > 0) for g in expected[1].values()) > 20
