"""UNETR-like decoder of MONAI's blocks: hidden states of the vision tower and voxels -> a mask of every item or class."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_itemized_clip import ItemizedCLIPConfig, ItemizedCLIPVisionConfig
from .pooling_itemized_clip import ItemizedCLIPItemPooler, loaded_weights

MODES = ("items", "classes")
ROWS_AT_ONCE = 4
"""Masks that are drawn at once outside of training: each takes some gigabyte where scans are large."""
NUM_MAPS = 5
CERTAIN = 50.0
"""Logit of a voxel that is to count nothing in a loss."""


@dataclass(frozen=True)
class ItemizedCLIPMaskSettings:
    """
    `config.mask_decoder`: how masks are made.

    Args:
        mode: `"items"`: a binary mask of every item, any text; `"classes"`: one of `num_labels` classes for every voxel,
            class 0 being the background.
        channels: width of the decoder in full resolution, a multiple of 4; it doubles with each coarser one, up to 8 times.
        item_dropout: share of the items whose words a training step hides from the decoder, which then sees the pooler's maps
            alone; masks of findings that had none in training rest on these.

    >>> ItemizedCLIPMaskSettings.of({"mode": "items"}).channels
    16
    """

    mode: str = "items"
    channels: int = 16
    item_dropout: float = 0.5

    @classmethod
    def of(cls, content: Any) -> "ItemizedCLIPMaskSettings":
        """From the entry of a config; ValueError where it is none."""
        content = {} if content is None else content
        known = list(cls.__dataclass_fields__)
        if not isinstance(content, dict) or not set(content) <= set(known):
            raise ValueError(f"mask_decoder is {content!r:.200}, expected a dictionary with some of {known}.")
        settings = cls(**content)
        if settings.mode not in MODES:
            raise ValueError(f"mask_decoder: mode is {settings.mode!r}, expected one of {list(MODES)}.")
        channels: Any = settings.channels
        if not isinstance(channels, int) or isinstance(channels, bool) or not 4 <= channels <= 512 or channels % 4:
            raise ValueError(f"mask_decoder: channels is {channels!r}, expected a multiple of 4 from 4 to 512.")
        dropout: Any = settings.item_dropout
        if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"mask_decoder: item_dropout is {dropout!r}, expected a share from 0 to 1.")
        return settings

    def to_dict(self) -> dict[str, Any]:
        """As the config holds it."""
        return asdict(self)


def upsampling_steps(patch_size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """
    Factors that lead from tokens to voxels, coarsest first; the depth, which has fewer of them, is done first.

    >>> upsampling_steps((4, 8, 8))
    [(2, 2, 2), (2, 2, 2), (1, 2, 2)]
    >>> upsampling_steps((8, 24, 24))
    [(2, 3, 3), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
    >>> upsampling_steps((1, 14, 14))
    [(1, 7, 7), (1, 2, 2)]
    """
    factors = [_prime_factors(size) for size in patch_size]
    count = max(len(own) for own in factors)
    depth, height, width = (own + [1] * (count - len(own)) for own in factors)
    return list(zip(depth, height, width))


def _prime_factors(number: int) -> list[int]:
    """Largest first."""
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found[::-1]


def item_maps(
    pooler: ItemizedCLIPItemPooler, items: torch.Tensor, tokens: torch.Tensor, token_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What the base model says of every token for an item, in numbers that mean the same for every finding.

    Args:
        items: (B, K, P) embeddings.
        tokens: (B, L, P), projected.
        token_mask: (B, L), True for tokens of real scans.

    Returns:
        maps (B, K, L, 5): log of the attention in units of its mean; the token's exact term of the score cos(t, p), in units
        of the mean term and of the largest; cosine of token and item; the score itself. And the scores (B, K).
    """
    keep = None if token_mask is None else token_mask[:, None, None]
    query, (key, value) = pooler.project_queries(items), pooler.project_tokens(tokens)
    attention = pooler.weigh(query, key, keep).float()
    pooled = pooler.merge(attention.to(value.dtype) @ value).float()
    text = F.normalize(items.float(), dim=-1)
    with loaded_weights(pooler.out_proj):
        along = text @ pooler.out_proj.weight.float()  # W^T t, so that no token has to go through W
    direction = torch.unflatten(along, -1, (pooler.num_heads, pooler.head_dim)).transpose(1, 2)
    length = pooled.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    terms = (attention * (direction @ value.float().transpose(-1, -2))).sum(1) / length
    score = (text * pooled / length).sum(-1)
    cosine = text @ F.normalize(tokens.float(), dim=-1).transpose(-1, -2)
    if token_mask is None:
        count = torch.full_like(terms[:, :1, :1], terms.shape[-1])
    else:
        count = token_mask.sum(-1).clamp(min=1)[:, None, None].to(terms.dtype)
        terms = terms * token_mask[:, None]
    share = attention.mean(1) * count
    largest = terms.abs().amax(-1, keepdim=True).clamp(min=1e-6)
    spread = score[..., None].expand_as(terms)
    maps = torch.stack([share.clamp(min=0.01).log(), (terms * count).asinh(), terms / largest, cosine, spread], -1)
    return maps, score


class ItemizedCLIPMaskDecoder(nn.Module):
    """
    The decoder of one vision tower.

    A pyramid of the voxels and hidden states of the tower's layers meet at each resolution from the tokens' to the voxels',
    as in UNETR (Hatamizadeh et al. 2021, arXiv:2103.10504); both are computed once per scan. For an item, the tokens are
    joined by their products with its embedding and by `item_maps`, which join each finer resolution, too.

    Args:
        config: of the whole model.
        settings: how masks are made.

    Raises:
        ImportError: MONAI is not installed.
    """

    def __init__(self, config: ItemizedCLIPConfig, settings: ItemizedCLIPMaskSettings):
        super().__init__()
        vision = config.vision
        self.settings, self.steps = settings, upsampling_steps(vision.patch_shape)
        levels = len(self.steps) + 1
        self.widths = [settings.channels * min(2**level, 8) for level in range(levels)]  # finest first
        self.layers = _choose_layers(vision.num_hidden_layers, levels)
        self._add_blocks(vision)
        coarsest = self.widths[-1]
        self.by_item = settings.mode == "items"
        if self.by_item:
            self.item_projection = nn.Conv3d(config.projection_dim, coarsest, 1, bias=False)
            self.map_projections = nn.ModuleList(nn.Conv3d(NUM_MAPS, width, 1) for width in self.widths)
        classes: Any = 1 if self.by_item else config.num_labels
        self.head = nn.Conv3d(self.widths[0], classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                # In a transposed one, whose stride is its kernel, a voxel hears of one place alone.
                places = 1 if isinstance(module, nn.ConvTranspose3d) else math.prod(module.kernel_size)
                bound: Any = math.sqrt(6 / (module.in_channels * places))
                module.init_bound = bound  # He's, see `ItemizedCLIPPreTrainedModel._init_weights`

    def _add_blocks(self, vision: ItemizedCLIPVisionConfig) -> None:
        blocks, widths = _monai_blocks(), self.widths
        common: dict[str, Any] = {"spatial_dims": 3, "norm_name": ("group", {"num_groups": 4})}
        to_coarser = self.steps[::-1]
        # Along an axis that a resolution does not refine, convolutions look at one voxel: thick slices are not mixed.
        kernels = [tuple(3 if factor > 1 else 1 for factor in step) for step in to_coarser]
        kernels.append((1 if vision.image_shape[0] == 1 else 3, 3, 3))
        first = blocks.UnetrBasicBlock(
            in_channels=vision.num_channels, out_channels=widths[0], kernel_size=kernels[0], stride=1, **common
        )
        self.image_blocks = nn.ModuleList([first])
        self.hidden_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        reach = list(vision.patch_shape)
        for level, step in enumerate(to_coarser, start=1):
            reach = [size // factor for size, factor in zip(reach, step)]
            strided = tuple(max(own, factor) for own, factor in zip(kernels[level - 1], step))
            sizes: dict[str, Any] = {"kernel_size": strided, "stride": step, "out_channels": widths[level]}
            self.image_blocks.append(blocks.UnetrBasicBlock(in_channels=widths[level - 1], **sizes, **common))
            sizes = {"kernel_size": 3, "stride": 1, "upsample_kernel_size": tuple(reach), "out_channels": widths[level]}
            hidden = blocks.UnetrPrUpBlock(in_channels=vision.hidden_size, num_layer=0, **sizes, **common)
            self.hidden_blocks.append(hidden)
            sizes = {"kernel_size": kernels[level - 1], "upsample_kernel_size": step, "out_channels": widths[level - 1]}
            self.up_blocks.append(blocks.UnetrUpBlock(in_channels=widths[level], **sizes, **common))
        sizes = {"kernel_size": kernels[-1], "stride": 1, "out_channels": widths[-1]}
        self.bottleneck = blocks.UnetrBasicBlock(in_channels=widths[-1], **sizes, **common)

    def encode(self, scans: torch.Tensor, hidden_states: list[torch.Tensor]) -> list[torch.Tensor]:
        """
        What does not depend on the item.

        Args:
            scans: (M, C, D, H, W) voxels.
            hidden_states: of `layers`, (M, hidden_size, d, h, w), those of the finest resolution first.

        Returns:
            features of each resolution, finest first: (M, width, ...).
        """
        features = [self.image_blocks[0](scans)]
        for image_block in self.image_blocks[1:]:
            features.append(image_block(features[-1]))
        for level, (block, hidden) in enumerate(zip(self.hidden_blocks, hidden_states), start=1):
            features[level] = features[level] + block(hidden)
        return features

    def forward(
        self, features: list[torch.Tensor], products: torch.Tensor | None = None, maps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            features: from `encode`.
            products: (M, K, P, d, h, w), tokens times items, both of unit length, times P; without items: None.
            maps: (M, K, 5, d, h, w), see `item_maps`.

        Returns:
            logits (M, K, D, H, W), or (M, classes, D, H, W) without items.
        """
        scans = len(features[0])
        items = 1 if products is None else products.shape[1]
        at_once = scans * items if self.training else ROWS_AT_ONCE
        step = max(at_once // items, 1)
        drawn = []
        for start in range(0, scans, step):
            some = slice(start, start + step)
            own = [feature[some] for feature in features]
            if products is None or maps is None:
                drawn.append(self._decode(own))
                continue
            pairs = zip(torch.split(products[some], at_once, 1), torch.split(maps[some], at_once, 1))
            drawn.append(torch.cat([self._decode_items(own, *pair) for pair in pairs], 1))
        return torch.cat(drawn)

    def _decode_items(self, features: list[torch.Tensor], products: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        scans, items = products.shape[:2]
        words = self.item_projection(products.flatten(0, 1))
        if self.training and self.settings.item_dropout:
            shown = torch.rand(len(words), 1, 1, 1, 1, device=words.device) >= self.settings.item_dropout
            words = words * shown.to(words.dtype)
        flat_maps = maps.flatten(0, 1).to(words.dtype)
        joined = []
        for feature, projection in zip(features, self.map_projections):
            own = feature[:, None].expand(-1, items, *feature.shape[1:]).flatten(0, 1)
            finer = F.interpolate(flat_maps, size=feature.shape[2:], mode="trilinear", align_corners=False)
            joined.append(own + projection(finer))
        joined[-1] = joined[-1] + words
        return torch.unflatten(self._decode(joined)[:, 0], 0, (scans, items))

    def _decode(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = self.bottleneck(features[-1])
        for level in range(len(self.steps), 0, -1):
            x = self.up_blocks[level - 1](x, features[level - 1])
        logits: torch.Tensor = self.head(x)
        return logits


def _choose_layers(count: int, levels: int) -> list[int]:
    """Places in the tower's hidden states (0: before the first layer), of each resolution but the finest."""
    return [round(count * level / (levels - 1)) for level in range(1, levels)] if levels > 1 else []


def _monai_blocks() -> Any:
    try:
        from monai.networks import blocks
    except ImportError:
        raise ImportError("Segmentation needs MONAI: pip install 'itemized-clip-hf[monai]'.") from None
    return blocks


def mask_loss(logits: torch.Tensor, labels: torch.Tensor, ignore: int, classes: bool) -> torch.Tensor:
    """
    MONAI's `DiceCELoss` over the masks that are known.

    Args:
        logits: (R, 1, D, H, W), or (R, classes, D, H, W).
        labels: (R, D, H, W); voxels that hold `ignore` count nothing, nor do rows of nothing else.
        ignore: the number.
        classes: softmax over the channels, the background without a Dice term of its own; else a sigmoid.
    """
    try:
        from monai.losses import DiceCELoss
    except ImportError:
        raise ImportError("The loss of masks needs MONAI: pip install 'itemized-clip-hf[monai]'.") from None
    is_known = labels != ignore
    rows = is_known.flatten(1).any(1)
    if not rows.any():
        return logits.float().sum() * 0
    logits, labels, is_known = logits.float()[rows], labels[rows], is_known[rows]
    # Voxels without truth become background that the model is sure of, which adds nothing to either term.
    labels = labels.masked_fill(~is_known, 0)[:, None]
    certain = torch.full_like(logits, -CERTAIN)
    if classes:
        certain[:, 0] = CERTAIN
    logits = torch.where(is_known[:, None], logits, certain)
    loss = DiceCELoss(include_background=not classes, to_onehot_y=classes, sigmoid=not classes, softmax=classes)
    found: torch.Tensor = loss(logits, labels if classes else labels.to(logits.dtype))
    return found
