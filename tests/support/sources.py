"""Tiny checkpoints in every layout that the converter knows, their configurations, and tokenizers of their size."""

import torch
from golden_cases import case
from golden_models import picture_model, radiology_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LAYOUTS = ("pictures", "volumes", "names", "hlip")


def source(layout: str):
    """State dict without prefix, domain, and the configuration that tells its heads and scopes."""
    if layout == "pictures":
        return dict(case("model2d_tiny")[2]), "remote-sensing", picture_model()[2].config
    if layout == "names":
        return (
            dict(case("hlipsn_tiny")[2]),
            "brain-mri",
            radiology_model("hlipsn_tiny", "brain-mri", use_scan_name_encoder=True)[2].config,
        )
    state, config = dict(case("hlip_singlescan_tiny")[2]), radiology_model("hlip_singlescan_tiny", "chest-ct")[2].config
    if layout == "hlip":  # the same trunk with a table of scans, without pooler and bias
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("visual_attn.", "logit_bias"))}
        width = state["visual.trunk.cls_token"].shape[-1]
        state["visual.trunk.sequential_posemb"] = torch.randn(1, 40, width, generator=torch.Generator().manual_seed(0))
        config.vision_config.max_num_scans = 40
        return state, "brain-mri", config
    return state, "chest-ct", config


def prima_state(state: dict) -> dict:
    """A file of Prima's: the encoder of sequence names of a state dict among other modules, under a prefix."""
    encoder = "visual.trunk.serienameencoder."
    own = {f"serie_name.{name.removeprefix(encoder)}": 2 * t for name, t in state.items() if name.startswith(encoder)}
    return {**own, "serie_name.out.weight": torch.zeros(3, 3), "visual_model.patchify.weight": torch.zeros(4, 4)}


def tokenizer_of_size(size: int) -> PreTrainedTokenizerFast:
    """One id a known word, the end of a text at the highest id, as CLIP has it."""
    words = ["[PAD]", "[UNK]", *(f"word{i}" for i in range(size - 4)), "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", size - 2), ("[SEP]", size - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


def training_dictionary(state: dict, prefix: str = "module.") -> dict:
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
    }


TEXT = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "layer_norm_eps",
)
VISION = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_channels",
    "image_size",
    "patch_size",
    "attention_scopes",
)
