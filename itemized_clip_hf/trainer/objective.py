"""What every objective is: random draws apart from the maths, features in, a dictionary of terms out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..modeling.configuration_itemized_clip import ItemizedCLIPConfig
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..modeling.pooling_itemized_clip import ItemizedCLIPItemPooler
from .gather import table_widths, world_size
from .losses.blocks import SeededMask
from .losses.functional import draw_keep_mask, draw_negatives


@dataclass
class Draws:
    """
    The random choices of one step.

    Args:
        negatives: (B, B + K - 1) row numbers into the flattened items, see `functional.draw_negatives`.
        keep_mask: (B, heads, B + K - 1, L), True where a text may attend to a token, or None; in a group of W processes a
            list of W of them, indexed by the rank whose texts are scored, (B, heads, B' + K' - 1, L) for a rank with B'
            studies of K' slots.
    """

    negatives: torch.Tensor | None = None
    keep_mask: torch.Tensor | SeededMask | list[torch.Tensor | SeededMask | None] | None = None

    def require_negatives(self) -> torch.Tensor:
        """The table, for objectives that score texts by it."""
        if self.negatives is None:
            raise ValueError("these draws hold no negatives: make them with the objective's own `draw`.")
        return self.negatives


@dataclass
class Features:
    """
    What the towers make of one batch.

    Args:
        image_embeds: (B, P) global features.
        image_tokens: (B, L, P).
        item_embeds: (B, K, P).
        item_mask: (B, K), True for real items; passed as None: all real.
        is_normal: (B,), studies without findings; passed as None: none.
        logit_scale, logit_bias: before exp, and as it is.
        pooler: the item pooler.
        token_mask: (B, L), True for tokens of real scans; all real if None.
        training: False hides no tokens at random.
        objective_module: the objective's own parameters, where it has some.
        item_tokens: (B, K, T, C), hidden states of the text tower, where `uses_item_tokens` is set.
        item_token_mask: (B, K, T), with them.
    """

    image_embeds: torch.Tensor
    image_tokens: torch.Tensor
    item_embeds: torch.Tensor
    item_mask: torch.Tensor
    is_normal: torch.Tensor
    logit_scale: torch.Tensor
    logit_bias: torch.Tensor
    pooler: ItemizedCLIPItemPooler
    token_mask: torch.Tensor | None = None
    training: bool = True
    objective_module: nn.Module | None = None
    item_tokens: torch.Tensor | None = None
    item_token_mask: torch.Tensor | None = None


class Objective(ABC):
    """
    Base of all objectives.

    A subclass takes its weights as constructor arguments, which become attributes, and is found by the name of its file.
    """

    #: Parts of the model that get no gradient from this objective; left trainable, they would stall distributed training.
    unused: tuple[str, ...] = ()
    #: Whether the model passes `item_tokens` and `item_token_mask`.
    uses_item_tokens: ClassVar[bool] = False

    def build_module(self, config: ItemizedCLIPConfig) -> nn.Module | None:
        """Parameters of the objective's own, for a model of that config."""
        return None

    def attach(self, model: ItemizedCLIPModel) -> None:
        """
        Makes this the loss of the model, in place.

        The model takes in the objective's own parameters as `objective_module` and passes them back: so they are sharded,
        moved, saved and restored with it. A model whose pooler is not trained is scored by its global embeddings.
        """
        module = self.build_module(model.config)
        own_parameters: Any = None if module is None else module.to(model.device, model.dtype)
        model.objective_module = own_parameters
        model.loss_function = self
        model.config.scoring = "global" if "item_pooler" in self.unused else "items"
        for name in self.unused:
            getattr(model, name).requires_grad_(False)

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """
        Optimizer groups of the objective's own parameters, where they are trained unlike the model's: `params`, the
        settings that differ, and `warmup_steps` if the schedule's warm-up does.
        """
        return []

    def draw(
        self, item_mask: torch.Tensor, num_tokens: int, num_heads: int, generator: torch.Generator | None = None
    ) -> Draws:
        """Every random choice of one step; objectives without any return empty draws. In a group all processes draw."""
        return Draws()

    def __call__(
        self,
        image_embeds: torch.Tensor,
        image_tokens: torch.Tensor,
        item_embeds: torch.Tensor,
        item_mask: torch.Tensor | None,
        is_normal: torch.Tensor | None,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor,
        pooler: ItemizedCLIPItemPooler,
        draws: Draws | None = None,
        token_mask: torch.Tensor | None = None,
        training: bool = True,
        **extra: Any,
    ) -> dict[str, torch.Tensor]:
        """
        The loss of one batch. The arguments are those of [`Features`]; `draws` are made here if None.

        Returns:
            `"loss"` and the unweighted terms it is made of. In a process group every rank returns its own sum over the local
            and the remote blocks, so that averaging gradients over ranks gives the mean.
        """
        if item_mask is None:
            item_mask = torch.ones(item_embeds.shape[:2], dtype=torch.bool, device=item_embeds.device)
        if is_normal is None:
            is_normal = torch.zeros(len(item_embeds), dtype=torch.bool, device=item_embeds.device)
        features = Features(
            image_embeds,
            image_tokens,
            item_embeds,
            item_mask.bool(),
            is_normal.view(-1).bool(),
            logit_scale,
            logit_bias,
            pooler,
            token_mask,
            training,
            **{name: extra[name] for name in ("objective_module", "item_tokens", "item_token_mask") if name in extra},
        )
        return self.compute(features, draws)

    @abstractmethod
    def compute(self, x: Features, draws: Draws | None) -> dict[str, torch.Tensor]:
        """The maths: see `__call__`."""


class StudyTextObjective(Objective):
    """
    Base of the objectives that take one text per study.

    The Trainer hands `join_items` to the collator, which joins before it tokenizes; the objective then gets one item slot.
    """

    unused: tuple[str, ...] = ("item_pooler",)

    @abstractmethod
    def join_items(self, items: list[str], generator: torch.Generator | None = None) -> str:
        """The text of a study with these items. Nothing is random without a generator, as in evaluation."""

    @staticmethod
    def study_embeds(x: Features) -> torch.Tensor:
        """The only item of every study, (B, P)."""
        if x.item_embeds.shape[1] != 1:
            raise ValueError(
                f"this objective takes one text per study, found {x.item_embeds.shape[1]} item slots: join the items before "
                "they are tokenized, as ItemizedCLIPCollator(..., join_items=objective.join_items) does."
            )
        if not bool(x.item_mask.all()):
            raise ValueError(f"{int((~x.item_mask).sum())} of {len(x.item_mask)} studies have no text.")
        return x.item_embeds[:, 0]


def draw_pairs(
    item_mask: torch.Tensor,
    num_tokens: int,
    num_heads: int,
    keep_rate: float,
    generator: torch.Generator | None = None,
) -> Draws:
    """Draws of the objectives that score sampled texts through the pooler; all processes of a group have to draw."""
    masks: list[torch.Tensor | SeededMask | None] = [None] * world_size()
    if keep_rate < 1:
        shapes = [(len(item_mask), num_heads, width, num_tokens) for width in table_widths(item_mask)]
        masks = [draw_keep_mask(shape, keep_rate, generator, item_mask.device) for shape in shapes]
    return Draws(draw_negatives(item_mask, generator), masks if world_size() > 1 else masks[0])
