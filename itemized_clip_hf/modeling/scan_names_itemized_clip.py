"""Character encoder of sequence names ("AX_T2 FLAIR"), which gives every scan of a study its identity (method 2.5)."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_itemized_clip import ItemizedCLIPVisionConfig

VOCABULARY_SIZE = 47
TERMINATOR_ID = 46
UNKNOWN_NAME_IDS = (21, 14, 11, TERMINATOR_ID)  # "unk"
POSITION_DIM = 10


def character_positions(length: int, dim: int = POSITION_DIM) -> torch.Tensor:
    """Interleaved [sin, cos] code of every character position: (length, dim)."""
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class ItemizedCLIPScanNameLayer(nn.Module):
    """Pre-norm transformer layer over the characters of one name."""

    def __init__(self, config: ItemizedCLIPVisionConfig):
        super().__init__()
        width = config.scan_name_hidden_size
        self.num_heads = config.scan_name_num_heads
        self.layer_norm1 = nn.LayerNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)
        self.layer_norm2 = nn.LayerNorm(width, eps=1e-5)
        self.fc1 = nn.Linear(width, config.scan_name_intermediate_size)
        self.fc2 = nn.Linear(config.scan_name_intermediate_size, width)

    def forward(self, hidden_states: torch.Tensor, character_mask: torch.Tensor) -> torch.Tensor:
        """(M, T, C), and the mask (M, T) that is True for characters of the name -> (M, T, C)."""
        names, length, width = hidden_states.shape
        qkv = self.qkv(self.layer_norm1(hidden_states))
        query, key, value = qkv.view(names, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=character_mask[:, None, None])
        hidden_states = hidden_states + self.out_proj(attended.transpose(1, 2).reshape(names, length, width))
        branch: torch.Tensor = self.fc2(F.gelu(self.fc1(self.layer_norm2(hidden_states))))
        return hidden_states + branch


class ItemizedCLIPScanNameEncoder(nn.Module):
    """Sequence names -> one vector per scan in the width of the vision tower."""

    def __init__(self, config: ItemizedCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY_SIZE, config.scan_name_hidden_size - POSITION_DIM)
        self.layers = nn.ModuleList([ItemizedCLIPScanNameLayer(config) for _ in range(config.scan_name_num_layers)])
        self.projection = nn.Linear(config.scan_name_hidden_size, config.hidden_size)

    def forward(self, scan_name_ids: torch.Tensor) -> torch.Tensor:
        """
        Vectors of the names.

        Args:
            scan_name_ids: (B, N, T) character ids, 46 ends a name, 0 pads.

        Returns:
            (B, N, hidden_size)
        """
        names: torch.Tensor = self.projection(self.encode(scan_name_ids))
        return names

    def encode(self, scan_name_ids: torch.Tensor) -> torch.Tensor:
        """The terminator's hidden state of every name, before the projection: (B, N, scan_name_hidden_size)."""
        names, inverse = scan_name_ids.flatten(0, 1), None
        if not torch.compiler.is_compiling():
            # A batch repeats few names, and most are far shorter than the 110 characters they are padded to.
            names, inverse = torch.unique(names, dim=0, return_inverse=True)
            names = names[:, : max(int((names != 0).sum(-1).max()), 1)]
        ends = names == TERMINATOR_ID
        character_mask = (ends.cumsum(-1) - ends.long()) == 0
        embedded = self.embedding(names)
        positions = character_positions(names.shape[1]).to(embedded)
        hidden_states = torch.cat([embedded, positions.expand(len(names), -1, -1)], dim=-1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, character_mask)
        last = ends.long().argmax(-1)[:, None, None].expand(-1, 1, hidden_states.shape[-1])
        encoded = hidden_states.gather(1, last)[:, 0]
        if inverse is not None:
            encoded = encoded[inverse]
        return encoded.view(*scan_name_ids.shape[:2], -1)
