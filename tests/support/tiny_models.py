"""What tests share by import, also in processes of their own: real data, items, the smallest configuration."""

import os
from pathlib import Path

import torch

DATA = Path(os.environ.get("ITEMIZED_CLIP_DATA", Path(__file__).parents[3] / "shared" / "data"))
SUPPORT = Path(__file__).parent
"""For processes of their own."""
ITEMS = [
    "left frontal mass",
    "small bleed in the right parietal lobe",
    "enlarged ventricles",
    "no significant abnormalities.",
]


def tiny_config(vocab_size: int = 120, text: str = "bert", **vision):
    """A model of some thousand parameters."""
    from itemized_clip_hf import ItemizedCLIPConfig

    text_config = {
        "model_type": {"bert": "bert", "clip": "clip_text_model"}[text],
        "vocab_size": vocab_size,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
    }
    if text == "clip":
        text_config |= {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1, "pad_token_id": 0}
    else:
        text_config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ItemizedCLIPConfig(
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_channels": 1,
            "image_size": [8, 16, 16],
            "patch_size": [4, 8, 8],
            "attention_scopes": ["slice", "scan", "study"],
            **vision,
        },
        text_config=text_config,
        projection_dim=16,
        num_pooler_heads=2,
    )


# Arguments of a short training run.
TRAINING = {
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "max_items": 3,
    "max_scans": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def leave_group() -> None:
    """
    Ends a process of a group that has done its part.

    Without the interpreter's clean-up: torch 2.13 can wait there for ever, the thread that destroys a gloo group holding the
    lock that the group's own thread needs.
    """
    import torch.distributed as dist

    dist.barrier()
    os._exit(0)


def random_study(model, seed=0, scans=2):
    generator = torch.Generator().manual_seed(seed)
    names = torch.zeros(1, scans, 110, dtype=torch.long)
    names[:, :, 0] = torch.arange(1, scans + 1)
    names[:, :, 1] = 46
    return {
        "pixel_values": torch.randn(1, scans, 1, 8, 16, 16, generator=generator),
        "scan_name_ids": names,
        "scan_mask": torch.ones(1, scans, dtype=torch.bool),
        "input_ids": torch.randint(5, 100, (1, 3, 7), generator=generator),
        "attention_mask": torch.ones(1, 3, 7, dtype=torch.long),
        "item_mask": torch.ones(1, 3, dtype=torch.bool),
    }
