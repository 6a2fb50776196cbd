"""Every objective learns 32 generated studies by heart: each text finds its own study."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_config
from torch.nn import functional as F

from itemized_clip_hf import ItemizedCLIPModel
from itemized_clip_hf.models.tokenizer import train_tokenizer
from itemized_clip_hf.trainer.objectives import StudyTextObjective, available_objectives, load_objective

STUDIES = 32
# At a scale of 100 a difference of 0.05 between masked cosines is enough, and nothing asks for one without masks.
ARGUMENTS = {"smartclip": {"scale": 10.0}}


def generate(seed=0):
    """Noise volumes, and one or two items of two words that no other item has."""
    rng = np.random.default_rng(seed)
    words = sorted({"".join(rng.choice(list("abcdefghij"), 3)) for _ in range(300)})
    items = [f"{words[2 * n]} {words[2 * n + 1]}" for n in range(2 * STUDIES)]
    volumes = torch.from_numpy(rng.normal(size=(STUDIES, 1, 1, 8, 16, 16)).astype(np.float32))
    return volumes, [items[2 * i : 2 * i + 1 + i % 2] for i in range(STUDIES)]


def encode(tokenizer, objective, studies, generator=None):
    if isinstance(objective, StudyTextObjective):
        studies = [[objective.join_items(items, generator)] for items in studies]
    slots = max(map(len, studies))
    encoded = tokenizer(
        [item for items in studies for item in items + ["a"] * (slots - len(items))],
        padding=True,
        return_tensors="pt",
    )
    ids, mask = (encoded[name].unflatten(0, (len(studies), slots)) for name in ("input_ids", "attention_mask"))
    real = torch.tensor([[k < len(items) for k in range(slots)] for items in studies])
    return {"input_ids": ids, "attention_mask": mask, "item_mask": real}


@torch.no_grad()
def retrieval(model, objective, volumes, texts):
    """Share of the texts whose own study scores highest: TCSim where the pooler is trained, else global cosine."""
    out = model.eval()(pixel_values=volumes, **texts)
    scores = out.logits_per_image
    if "item_pooler" in objective.unused:
        scores = F.normalize(out.image_embeds, dim=-1) @ F.normalize(out.item_embeds.flatten(0, 1), dim=-1).t()
    model.train()
    real = texts["item_mask"]
    owner = torch.arange(STUDIES)[:, None].expand_as(real)[real]
    return (scores.argmax(0)[real.flatten()] == owner).float().mean().item()


QUICK = ("itemized_clip", "clip")  # of items, of joined items


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in available_objectives()]
)
def test_learns_by_heart(name):
    torch.manual_seed(0)
    volumes, studies = generate()
    tokenizer = train_tokenizer([item for items in studies for item in items], 240, 24)
    objective = load_objective(name, **ARGUMENTS.get(name, {}))
    config = tiny_config(240, attention_scopes=["scan", "scan", "study"], hidden_size=48, intermediate_size=96)
    config.projection_dim = 32
    config.text_config.hidden_size, config.text_config.intermediate_size = 48, 96
    model = ItemizedCLIPModel(config).train()
    objective.attach(model)
    groups = [
        {"params": group["params"], "lr": group["lr"]} for group in objective.parameter_groups(model.objective_module)
    ]
    special = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in special]
    optimizer = torch.optim.Adam([{"params": rest}, *groups], lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    fixed = encode(tokenizer, objective, studies)
    assert retrieval(model, objective, volumes, fixed) < 0.2
    found = 0.0
    for step in range(1000):
        texts = encode(tokenizer, objective, studies, generator)
        loss = model(pixel_values=volumes, **texts, return_loss=True, return_logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            found = retrieval(model, objective, volumes, fixed)
            if found > 0.95:
                break
    assert found > 0.95
