"""Configuration of ItemizedCLIP: one vision config for 2-D images, single scans and studies of several scans."""

from collections.abc import Iterable
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

ATTENTION_SCOPES = ("slice", "scan", "study")
POSITION_EMBEDDING_TYPES = ("sincos", "learned")
TEXT_POOLING = ("auto", "first", "eos", "mean")
SCORINGS = ("items", "global")
CLASSIFIER_HEADS = ("items", "class_token")

MAX_SIZES = {
    "hidden_size": 1 << 16,
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "intermediate_size": 1 << 18,
    "num_channels": 1024,
    "image_size": 1 << 14,
    "patch_size": 1 << 14,
    "max_num_scans": 1 << 12,
    "scan_name_hidden_size": 1 << 14,
    "scan_name_num_layers": 512,
    "scan_name_num_heads": 1024,
    "scan_name_intermediate_size": 1 << 16,
    "projection_dim": 1 << 16,
    "num_pooler_heads": 1024,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 20,
}
"""Largest values of sizes: more is a damaged file, and would take all memory."""
MAX_TOKENS = 1 << 20


def _check_sizes(config: PreTrainedConfig, where: str) -> None:
    for name, largest in MAX_SIZES.items():
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and not 1 <= value <= largest:
            raise ValueError(f"{where}{name} is {value}, expected a whole number from 1 to {largest}.")


def _check_shares(config: PreTrainedConfig, where: str, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f"{where}{name} is {value}, expected a share from 0 to 1.")


def _three_sizes(name: str, value: Any) -> list[int]:
    """[depth, height, width] of what a config may give for it."""
    if isinstance(value, int):
        value = [1, value, value]
    sizes = list(value) if isinstance(value, (list, tuple)) else [value]
    are_counts = all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)
    if len(sizes) != 3 or not are_counts or min(sizes) < 1 or max(sizes) > MAX_SIZES[name]:
        raise ValueError(f"{name} must be [depth, height, width] of positive voxel counts, got {sizes}.")
    return sizes


@strict
class ItemizedCLIPVisionConfig(PreTrainedConfig):
    r"""
    Vision tower (method 2).

    Args:
        image_size (`list[int]`): voxels of one scan as `[depth, height, width]`; an int is a square picture.
        patch_size (`list[int]`): voxels of one patch, same order.
        attention_scopes (`list[str]`, *optional*): `"slice"`, `"scan"` or `"study"` for every layer; `"study"` if left out.
        position_embedding_type (`str`): `"sincos"` for a frozen 3-D table (MAE tables are loaded into it), `"learned"`
            for a trainable one that starts from it.
        max_num_scans (`int`): rows of the frozen scan position table. 1 means none. Without effect with a name encoder.
        use_scan_name_encoder (`bool`): identify scans by the characters of their sequence names.
        scan_name_hidden_size (`int`): width of the name encoder, 10 of which encode the character's position.
        use_pre_layernorm (`bool`): LayerNorm before the first layer (CLIP-style towers).
        patch_bias (`bool`): bias in the patch projection.
        drop_path_rate (`float`): of the last layer, growing linearly from 0.
        patch_dropout (`float`): share of the patches of every slice that a training step leaves out.

    >>> config = ItemizedCLIPVisionConfig(image_size=[48, 224, 224], patch_size=[8, 16, 16], num_channels=1)
    >>> config.grid_size
    [6, 14, 14]
    >>> ItemizedCLIPVisionConfig(image_size=100, patch_size=16)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    huggingface_hub.errors.StrictDataclassClassValidationError: ...
        ValueError: image_size [1, 100, 100] is not a multiple of patch_size [1, 16, 16].
    """

    model_type = "itemized_clip_vision_model"
    base_config_key = "vision_config"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, ...] = (1, 224, 224)
    patch_size: int | list[int] | tuple[int, ...] = (1, 16, 16)
    attention_scopes: list[str] | tuple[str, ...] | None = None
    position_embedding_type: str = "sincos"
    max_num_scans: int = 1
    use_scan_name_encoder: bool = False
    scan_name_hidden_size: int = 256
    scan_name_num_layers: int = 3
    scan_name_num_heads: int = 4
    scan_name_intermediate_size: int = 300
    use_pre_layernorm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    patch_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self.image_size = _three_sizes("image_size", self.image_size)
        self.patch_size = _three_sizes("patch_size", self.patch_size)
        if self.attention_scopes is None:
            self.attention_scopes = ["study"] * self.num_hidden_layers
        self.attention_scopes = list(self.attention_scopes)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # of the library, without types

    def validate_architecture(self) -> None:
        """Checks what single fields cannot; called by the library on construction."""
        _check_sizes(self, "vision_config: ")
        _check_shares(self, "vision_config: ", ("attention_dropout", "drop_path_rate", "patch_dropout"))
        if not 0 < self.layer_norm_eps <= 1 or not 0 < self.initializer_range < 100:
            raise ValueError(
                f"layer_norm_eps is {self.layer_norm_eps} and initializer_range {self.initializer_range}, expected small "
                "positive numbers."
            )
        tokens = self.grid_size[0] * self.grid_size[1] * self.grid_size[2]
        if tokens > MAX_TOKENS:
            raise ValueError(
                f"image_size {self.image_size} makes {tokens} tokens of a scan, expected at most {MAX_TOKENS}."
            )
        if any(size % patch for size, patch in zip(self.image_shape, self.patch_shape)):
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")
        if len(self.layer_scopes) != self.num_hidden_layers:
            raise ValueError(
                f"attention_scopes names {len(self.layer_scopes)} layers, num_hidden_layers is "
                f"{self.num_hidden_layers}: every layer needs exactly one scope."
            )
        unknown = sorted(set(self.layer_scopes) - set(ATTENTION_SCOPES))
        if unknown:
            raise ValueError(f"attention_scopes holds {unknown}; known scopes are {list(ATTENTION_SCOPES)}.")
        if self.position_embedding_type not in POSITION_EMBEDDING_TYPES:
            raise ValueError(
                f"position_embedding_type is {self.position_embedding_type!r}, expected one of "
                f"{list(POSITION_EMBEDDING_TYPES)}."
            )
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout is {self.patch_dropout}, expected a share in [0, 1).")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}."
            )

    @property
    def grid_size(self) -> list[int]:
        """Tokens of one scan at the configured size, `[depth, height, width]`."""
        return [size // patch for size, patch in zip(self.image_shape, self.patch_shape)]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`image_size` as depth, height and width, whatever it was given as."""
        return cast(tuple[int, int, int], tuple(cast(list[int], self.image_size)))

    @property
    def patch_shape(self) -> tuple[int, int, int]:
        """`patch_size` as depth, height and width, whatever it was given as."""
        return cast(tuple[int, int, int], tuple(cast(list[int], self.patch_size)))

    @property
    def layer_scopes(self) -> list[str]:
        """`attention_scopes`, one for every layer, where they were left out, too."""
        return cast(list[str], self.attention_scopes)


@strict
class ItemizedCLIPConfig(PreTrainedConfig):
    r"""
    Whole model: vision tower, text tower and item pooler.

    Args:
        vision_config (`dict` or [`ItemizedCLIPVisionConfig`], *optional*).
        text_config (`dict` or config, *optional*): of any encoder that `AutoModel` builds; `clip_text_model` and `bert`
            are what the published checkpoints use.
        projection_dim (`int`): width P shared by images, tokens and items.
        num_pooler_heads (`int`): heads of the cross-attention item pooler.
        logit_scale_init_value, logit_bias_init_value (`float`): logit = exp(scale) * cosine + bias.
        text_pooling (`str`): `"first"` token, `"eos"` (the tower's own pooled output), masked `"mean"`, or `"auto"`:
            `"eos"` for CLIP-like towers, else `"first"`.
        scoring (`str`): how a study is scored with a text: `"items"`, by what the item pooler gathers for it, or `"global"`,
            by the class token; training sets the latter where its objective does not train the pooler (`clip`, `mps`, ...).
        domain (`str`, *optional*): the domain whose facts (preprocessing, prompts, loss weights) belong to this model.
        classifier_head (`str`): of [`ItemizedCLIPForImageClassification`], whose labels are the library's `id2label`:
            `"items"`, a query for each label that the item pooler gathers for, or `"class_token"`, a linear layer on the class
            token.
        class_weights (`list[float]`, *optional*): of its loss, one for each label: where several labels may hold the factor of
            studies that have the label, where one holds the factor of studies of the class.
        preprocessing (`dict`, *optional*): hashes of the processor's settings that this model was made with,
            `ItemizedCLIPProcessor.preprocessing()`.

    >>> config = ItemizedCLIPConfig(
    ...     vision_config={"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32},
    ...     text_config={"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2},
    ...     projection_dim=32,
    ... )
    >>> config.vision.grid_size, config.text.model_type
    ([1, 2, 2], 'bert')
    """

    model_type = "itemized_clip"
    # Not `sub_configs_defaults`, which the oldest supported version of the library does not know.
    sub_configs = {"vision_config": ItemizedCLIPVisionConfig, "text_config": AutoConfig}
    # The embeddings of a whole evaluation set would be kept in memory.
    keys_to_ignore_at_inference = [
        "item_embeds",
        "image_embeds",
        "image_tokens",
        "text_model_output",
        "vision_model_output",
        "loss_terms",
    ]

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projection_dim: int = 512
    num_pooler_heads: int = 8
    logit_scale_init_value: float | int = 2.65926
    logit_bias_init_value: float | int = -10.0
    text_pooling: str = "auto"
    scoring: str = "items"
    classifier_head: str = "items"
    class_weights: list[float | int] | None = None
    domain: str | None = None
    preprocessing: dict[str, Any] | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = ItemizedCLIPVisionConfig()
        elif isinstance(self.vision_config, dict):
            self.vision_config = ItemizedCLIPVisionConfig(**self.vision_config)
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("clip_text_model")
        elif isinstance(self.text_config, dict):
            text = {"model_type": "clip_text_model", **self.text_config}
            self.text_config = AutoConfig.for_model(text.pop("model_type"), **text)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]  # of the library, without types

    @property
    def vision(self) -> ItemizedCLIPVisionConfig:
        """`vision_config`, which is a config once it is built, whatever it was given as."""
        return cast(ItemizedCLIPVisionConfig, self.vision_config)

    @property
    def text(self) -> PreTrainedConfig:
        """`text_config`, which is a config once it is built, whatever it was given as."""
        return cast(PreTrainedConfig, self.text_config)

    def validate_architecture(self) -> None:
        """Checks what single fields cannot; called by the library on construction."""
        _check_sizes(self, "")
        _check_sizes(self.text, "text_config: ")
        if not abs(self.logit_scale_init_value) < 100 or not abs(self.logit_bias_init_value) < 1e4:
            raise ValueError(
                f"logit_scale_init_value is {self.logit_scale_init_value} and logit_bias_init_value "
                f"{self.logit_bias_init_value}: expected a logarithm and a bias of ordinary size."
            )
        if self.projection_dim % self.num_pooler_heads:
            raise ValueError(
                f"projection_dim {self.projection_dim} is not divisible by num_pooler_heads {self.num_pooler_heads}."
            )
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring is {self.scoring!r}, expected one of {list(SCORINGS)}.")
        if self.classifier_head not in CLASSIFIER_HEADS:
            raise ValueError(f"classifier_head is {self.classifier_head!r}, expected one of {list(CLASSIFIER_HEADS)}.")
        if self.text_pooling not in TEXT_POOLING:
            raise ValueError(f"text_pooling is {self.text_pooling!r}, expected one of {list(TEXT_POOLING)}.")
