"""The text tower: any encoder of the library, and which of its outputs stands for a text."""

import inspect
from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


def build_text_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Text tower of any type `AutoModel` knows, without the pooling layer that BERT-like ones would add."""
    model_class: Any = AutoModel._model_mapping[type(config)]
    takes_pooling = "add_pooling_layer" in inspect.signature(model_class).parameters
    options = {"add_pooling_layer": False} if takes_pooling else {}
    text_model: PreTrainedModel = AutoModel.from_config(config, **options)  # type: ignore[no-untyped-call]  # of the library
    return text_model


def choose_text_pooling(config: PreTrainedConfig) -> str:
    """What `text_pooling="auto"` means for a text tower: the end of the text for CLIP-like ones, else the first token."""
    return "eos" if "clip" in config.model_type else "first"


def pool_text(
    outputs: BaseModelOutputWithPooling, attention_mask: torch.Tensor | None, text_pooling: str
) -> torch.Tensor:
    """
    One vector per text, (M, hidden_size).

    Args:
        outputs: of the tower, for texts (M, T).
        attention_mask: (M, T), where there is padding.
        text_pooling: `"eos"`, the tower's own pooled output, `"first"` token, or the `"mean"` of all but padding.
    """
    hidden_states: Any = outputs.last_hidden_state
    if text_pooling == "eos":
        pooled: Any = outputs.pooler_output
    elif text_pooling == "first":
        pooled = hidden_states[:, 0]
    else:
        mask = hidden_states.new_ones(hidden_states.shape[:2]) if attention_mask is None else attention_mask
        weights = mask[..., None].to(hidden_states.dtype)
        pooled = (hidden_states * weights).sum(1) / weights.sum(1).clamp(min=1)
    vectors: torch.Tensor = pooled
    return vectors
