"""Vision tower: patches of one or more scans, attention within slices, scans or the whole study (method 2)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_itemized_clip import ItemizedCLIPVisionConfig
from .scan_names_itemized_clip import UNKNOWN_NAME_IDS, ItemizedCLIPScanNameEncoder


def sincos_1d(length: int, dim: int) -> torch.Tensor:
    """Sin-cos code of the positions 0..length-1, all sines first: (length, dim)."""
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def sincos_3d(grid_size: list[int], dim: int) -> torch.Tensor:
    """
    Code of a token grid, channels in thirds for width, height and depth: (D, H, W, dim).

    Channels that are left over where `dim` is not a multiple of 6 hold zeros.
    """
    depth, height, width = grid_size
    d, h, w = (sincos_1d(size, 2 * (dim // 6)) for size in grid_size)
    code = torch.cat(
        [
            w[None, None].expand(depth, height, -1, -1),
            h[None, :, None].expand(depth, -1, width, -1),
            d[:, None, None].expand(-1, height, width, -1),
        ],
        dim=-1,
    )
    return F.pad(code, (0, dim - code.shape[-1]))


def resample_grid(table: torch.Tensor, grid_size: list[int]) -> torch.Tensor:
    """Trilinear resampling of a position table (D, H, W, C) to another token grid."""
    if list(table.shape[:3]) == list(grid_size):
        return table
    table = table.permute(3, 0, 1, 2)[None].float()
    resampled = F.interpolate(table, size=list(grid_size), mode="trilinear", align_corners=False)
    return resampled[0].permute(1, 2, 3, 0)


def scan_positions(table: torch.Tensor, num_scans: int, training: bool) -> torch.Tensor:
    """Rows (N, C) of the scan table: a random choice in training, the first rows (interpolated if too few) otherwise."""
    if num_scans > len(table):
        rows = F.interpolate(table.t()[None].float(), size=num_scans, mode="linear", align_corners=False)
        return rows[0].t().to(table.dtype)
    if training:
        return table[torch.randperm(len(table), device=table.device)[:num_scans]]
    return table[:num_scans]


def spread_scan_mask(scan_mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """(B, N) -> (B, L), True for the tokens of real scans."""
    return scan_mask.bool().repeat_interleave(num_tokens // scan_mask.shape[1], dim=1)


def drop_patches(slices: torch.Tensor, share: float) -> torch.Tensor:
    """Random patches of every slice (M, L, C), as many of each: (M, L', C) with L' >= 1."""
    remaining = max(round(slices.shape[1] * (1 - share)), 1)
    chosen = torch.rand(slices.shape[:2], device=slices.device).argsort(1)[:, :remaining]
    return slices.gather(1, chosen[..., None].expand(-1, -1, slices.shape[2]))


class ItemizedCLIPPatchEmbedding(nn.Conv3d):
    """Voxels (M, C, D, H, W) -> tokens (M, D, H, W, hidden_size), one per patch."""

    def forward(self, scans: torch.Tensor) -> torch.Tensor:
        """Tokens of the scans; on CPUs half precision goes through a matrix product."""
        scans = scans.to(self.weight.dtype)
        if scans.device.type == "cpu" and self.weight.dtype != torch.float32:
            # Half-precision convolution is several times slower than a matrix product on CPUs.
            _, channels, d, h, w = self.weight.shape
            blocks = torch.unflatten(torch.unflatten(torch.unflatten(scans, -1, (-1, w)), -3, (-1, h)), -5, (-1, d))
            return F.linear(blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4), self.weight.flatten(1), self.bias)
        return super().forward(scans).permute(0, 2, 3, 4, 1)


class ItemizedCLIPVisionEmbeddings(nn.Module):
    """Scans -> class token and patch tokens of the study, positions and scan identities added."""

    def __init__(self, config: ItemizedCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.patch_embedding = ItemizedCLIPPatchEmbedding(
            config.num_channels,
            config.hidden_size,
            kernel_size=config.patch_shape,
            stride=config.patch_shape,
            bias=config.patch_bias,
        )
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        dtype = torch.get_default_dtype()
        table = sincos_3d(config.grid_size, config.hidden_size).to(dtype)
        if config.position_embedding_type == "learned":
            self.position_embedding = nn.Parameter(table)
        else:
            self.register_buffer("position_embedding", table)
        self.scan_name_encoder = ItemizedCLIPScanNameEncoder(config) if config.use_scan_name_encoder else None
        if config.max_num_scans > 1 and not config.use_scan_name_encoder:
            self.register_buffer("scan_embedding", sincos_1d(config.max_num_scans, config.hidden_size).to(dtype))
        else:
            self.scan_embedding: torch.Tensor | None = None

    def scan_positions(self, table: torch.Tensor, scans: int, scan_mask: torch.Tensor | None) -> torch.Tensor:
        """(B or 1, N, hidden_size): rows of the scan table; padded scans do not count where it has to be interpolated."""
        if scan_mask is None or scans <= len(table) or torch.compiler.is_compiling():
            return scan_positions(table, scans, self.training)[None]
        rows = [scan_positions(table, max(count, 1), self.training) for count in scan_mask.sum(1).tolist()]
        return torch.stack([F.pad(row, (0, 0, 0, scans - len(row))) for row in rows])

    def forward(
        self,
        pixel_values: torch.Tensor,
        scan_name_ids: torch.Tensor | None = None,
        scan_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """
        Tokens of a batch of studies.

        Args:
            pixel_values: (B, N, C, D, H, W), or (B, C, H, W) for pictures.
            scan_name_ids: (B, N, T), used where the config asks for a name encoder; "unk" for every scan if left out.
            scan_mask: (B, N), real scans first.

        Returns:
            hidden states (B, 1 + L, hidden_size) and the token counts (scans, slices per scan, tokens per slice).

        Raises:
            ValueError: the pixels are not of a shape that the config allows.
        """
        if pixel_values.ndim == 4:
            pixel_values = pixel_values[:, None, :, None]
        self._check_shape(pixel_values)
        batch, scans = pixel_values.shape[:2]
        config = self.config
        patches = self.patch_embedding(pixel_values.flatten(0, 1))
        grid_size = list(patches.shape[1:4])
        patches = patches + resample_grid(self.position_embedding, grid_size).to(patches.dtype)
        patches = self._add_scan_identity(
            patches.reshape(batch, scans, -1, config.hidden_size), scan_name_ids, scan_mask
        )
        tokens = grid_size[1] * grid_size[2]
        if self.training and config.patch_dropout:
            slices = drop_patches(patches.reshape(-1, tokens, config.hidden_size), config.patch_dropout)
            tokens = slices.shape[1]
            patches = slices.reshape(batch, scans, -1, config.hidden_size)
        class_token = self.class_embedding.to(patches.dtype).expand(batch, 1, -1)
        hidden_states = torch.cat([class_token, patches.flatten(1, 2)], dim=1)
        return hidden_states, (scans, grid_size[0], tokens)

    def _check_shape(self, pixel_values: torch.Tensor) -> None:
        if pixel_values.ndim != 6:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, scans, channels, depth, height, "
                "width), or (batch, channels, height, width) for pictures."
            )
        channels, *size = pixel_values.shape[2:]
        config = self.config
        if channels != config.num_channels:
            raise ValueError(f"pixel_values has {channels} channels, the model was built for {config.num_channels}.")
        if any(voxels % patch for voxels, patch in zip(size, config.patch_shape)):
            raise ValueError(f"a scan of {size} voxels is not a multiple of the patch size {config.patch_size}.")

    def _add_scan_identity(
        self, patches: torch.Tensor, scan_name_ids: torch.Tensor | None, scan_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Patches (B, N, L, C) that know their scan: by its name, by its place in the study, or not at all."""
        if self.scan_name_encoder is not None:
            if scan_name_ids is None:
                unknown = torch.tensor(UNKNOWN_NAME_IDS, device=patches.device)
                scan_name_ids = unknown.expand(*patches.shape[:2], -1)
            names: torch.Tensor = self.scan_name_encoder(scan_name_ids)
            return patches + names[:, :, None].to(patches.dtype)
        if self.scan_embedding is not None:
            positions = self.scan_positions(self.scan_embedding, patches.shape[1], scan_mask)
            return patches + positions[:, :, None].to(patches.dtype)
        return patches


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attended values and the attention; `attention_mask` is boolean (True = attend) or additive."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    attention = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attention = F.dropout(attention, p=dropout, training=module.training)
    return (attention @ value).transpose(1, 2).contiguous(), attention


class ItemizedCLIPVisionAttention(nn.Module):
    """Multi-head self-attention over the rows of one scope."""

    def __init__(self, config: ItemizedCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows (R, L, C) -> attended rows (R, L, C), and the attention, where the implementation keeps it."""
        input_shape = hidden_states.shape[:-1]
        qkv = self.qkv(hidden_states).view(*input_shape, 3, -1, self.head_dim)
        attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # PyTorch's own attention on CPUs is several times slower in half precision, backwards most of all.
        widen = qkv.device.type == "cpu" and self.config._attn_implementation == "sdpa" and qkv.dtype.itemsize == 2
        with torch.autocast("cpu", enabled=False) if widen else nullcontext():
            query, key, value = (qkv.float() if widen else qkv).permute(2, 0, 3, 1, 4)
            output, attention = attend(
                self,
                query,
                key,
                value,
                attention_mask,
                is_causal=False,
                scaling=self.scaling,
                dropout=self.config.attention_dropout if self.training else 0.0,
                **kwargs,
            )
        return self.out_proj(output.reshape(*input_shape, -1).to(qkv.dtype)), attention


class ItemizedCLIPVisionMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: ItemizedCLIPVisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C)."""
        output: torch.Tensor = self.fc2(self.activation(self.fc1(hidden_states)))
        return output


class ItemizedCLIPDropPath(nn.Module):
    """Drops the residual branch of whole rows in training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """(R, L, C) -> (R, L, C), in training zero for some rows and scaled up for the others."""
        if self.rate == 0.0 or not self.training:
            return branch
        keep = torch.rand(branch.shape[0], 1, 1, device=branch.device) >= self.rate
        return branch * keep.to(branch.dtype) / (1.0 - self.rate)


def regroup_class_tokens(
    tokens: torch.Tensor, grid: tuple[int, int, int], target: int, scan_mask: torch.Tensor | None
) -> torch.Tensor:
    """
    Class tokens of one layout -> those of another: mean when rows merge, copies when they split.

    Args:
        tokens: (B, R, C) with R = 1 (study), N (scan) or N * D (slice) rows.
        grid: scans, slices per scan, tokens per slice.
        target: row count to reach.
        scan_mask: (B, N), True for scans that count.
    """
    scans, slices, _ = grid
    if tokens.shape[1] > target and tokens.shape[1] > scans:
        tokens = torch.unflatten(tokens, 1, (scans, slices)).mean(2)
    if tokens.shape[1] > target:
        if scan_mask is None:
            return tokens.mean(1, keepdim=True)
        weights = scan_mask.to(tokens.dtype)[:, :, None]
        return (tokens * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    if tokens.shape[1] < target:
        tokens = tokens.repeat_interleave(target // tokens.shape[1], dim=1)
    return tokens


class ItemizedCLIPVisionLayer(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]  # of the library, without types
    """Pre-norm transformer layer whose rows are the slices, the scans or the whole of a study."""

    def __init__(self, config: ItemizedCLIPVisionConfig, scope: str, drop_path_rate: float = 0.0):
        super().__init__()
        self.scope = scope
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ItemizedCLIPVisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ItemizedCLIPVisionMLP(config)
        self.drop_path = ItemizedCLIPDropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int, int],
        scan_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, R + L, C), the class tokens of the layer before first, then all patches of the study.
            grid: scans, slices per scan, tokens per slice.
            scan_mask: (B, N).
            attention_mask: of the study's tokens, used in study scope only.

        Returns:
            (B, R' + L, C) with this layer's own count of class tokens.
        """
        scans, slices, tokens = grid
        num_patches = scans * slices * tokens
        rows = {"study": 1, "scan": scans, "slice": scans * slices}[self.scope]
        batch, _, width = hidden_states.shape
        class_tokens = regroup_class_tokens(hidden_states[:, :-num_patches], grid, rows, scan_mask)
        patches = hidden_states[:, -num_patches:]
        x = torch.cat(
            [class_tokens.reshape(batch * rows, 1, width), patches.reshape(batch * rows, num_patches // rows, width)],
            dim=1,
        )

        attended, _ = self.self_attn(
            self.layer_norm1(x), attention_mask=attention_mask if self.scope == "study" else None, **kwargs
        )
        x = x + self.drop_path(attended)
        x = x + self.drop_path(self.mlp(self.layer_norm2(x)))

        class_tokens, patches = x[:, :1].reshape(batch, rows, width), x[:, 1:].reshape(batch, num_patches, width)
        return torch.cat([class_tokens, patches], dim=1)


class ItemizedCLIPVisionEncoder(nn.Module):
    """The layers, and the one mask they share."""

    def __init__(self, config: ItemizedCLIPVisionConfig):
        super().__init__()
        self.config = config
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(
            [ItemizedCLIPVisionLayer(config, scope, rate) for scope, rate in zip(config.layer_scopes, rates)]
        )
        self.gradient_checkpointing = False

    def study_mask(
        self, hidden_states: torch.Tensor, grid: tuple[int, int, int], scan_mask: torch.Tensor | None
    ) -> Any:
        """Mask of the study's tokens (class token first) in the form that the attention implementation takes."""
        if scan_mask is None or grid[0] == 1 or "study" not in self.config.layer_scopes:
            return None
        token_mask = F.pad(scan_mask.bool().repeat_interleave(grid[1] * grid[2], dim=1), (1, 0), value=True)
        if self.config._attn_implementation in (None, "eager", "sdpa"):
            return token_mask[:, None, None]  # broadcast over queries: a square mask of a whole study would be huge
        return create_bidirectional_mask(self.config, hidden_states, token_mask)

    def forward(
        self,
        hidden_states: torch.Tensor,
        grid: tuple[int, int, int],
        scan_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(B, 1 + L, C) -> (B, 1 + L, C)."""
        attention_mask = self.study_mask(hidden_states, grid, scan_mask)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, grid=grid, scan_mask=scan_mask, attention_mask=attention_mask, **kwargs
            )
        num_patches = grid[0] * grid[1] * grid[2]
        class_token = regroup_class_tokens(hidden_states[:, :-num_patches], grid, 1, scan_mask)
        return torch.cat([class_token, hidden_states[:, -num_patches:]], dim=1)
