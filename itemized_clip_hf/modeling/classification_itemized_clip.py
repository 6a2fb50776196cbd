"""A classifier of studies: every label has a query of its own, which starts from a text, or a weight on the class token."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_itemized_clip import ItemizedCLIPConfig
from .modeling_itemized_clip import ItemizedCLIPModel, ItemizedCLIPVisionModel
from .pooling_itemized_clip import ItemizedCLIPItemPooler, global_similarity, pooled_similarity
from .pretrained_itemized_clip import ItemizedCLIPPreTrainedModel
from .vision_itemized_clip import spread_scan_mask

MULTI_LABEL, SINGLE_LABEL = "multi_label_classification", "single_label_classification"
UNKNOWN = -100
"""A label that is not known; NaN is one, too, where several labels can hold."""


class ItemizedCLIPForImageClassification(ItemizedCLIPPreTrainedModel):
    r"""
    Labels of studies, by one of two heads.

    `config.classifier_head` says by which:

    - `"items"`: the logit of a label is exp(logit_scale) * TCSim(q, study) + logit_bias, its query q (P,) in place of a text's
      embedding; the global cosine where `config.scoring` is `"global"`. With queries that are texts' embeddings
      (`from_prompts`) these are `logits_per_image` of [`ItemizedCLIPModel`], the zero-shot logits.
    - `"class_token"`: a linear layer on the class token of the vision tower, which starts from zeros.

    There is no text tower. The other parts are called as in [`ItemizedCLIPModel`], whose folders `from_pretrained` therefore
    takes; the queries are random then, see `from_prompts`.

    >>> sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    >>> config = ItemizedCLIPConfig(
    ...     vision_config={**sizes, "image_size": [4, 16, 16], "patch_size": [4, 8, 8], "num_channels": 1},
    ...     projection_dim=16,
    ...     num_labels=3,
    ... )
    >>> model = ItemizedCLIPForImageClassification(config).eval()
    >>> labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, float("nan"), 1.0]])  # one is not known
    >>> outputs = model(pixel_values=torch.randn(2, 3, 1, 4, 16, 16), labels=labels)
    >>> outputs.logits.shape, outputs.loss.shape
    (torch.Size([2, 3]), torch.Size([]))
    """

    input_modalities = ("image",)  # type: ignore[assignment]  # of the library, declared for one model
    _can_record_outputs: dict[str, Any] = {}
    # What else a folder of ItemizedCLIPModel holds, and the parts of it that a head does without.
    _keys_to_ignore_on_load_unexpected = [
        r"^(text_model|text_projection|objective_module|item_pooler|visual_projection|logit_scale|logit_bias)\b"
    ]
    accepts_loss_kwargs = False  # the loss is a mean over the known labels of the batch

    def __init__(self, config: ItemizedCLIPConfig):
        super().__init__(config)
        if config.problem_type not in (None, MULTI_LABEL, SINGLE_LABEL):
            raise ValueError(f"problem_type is {config.problem_type!r}, expected {MULTI_LABEL!r} or {SINGLE_LABEL!r}.")
        weights = config.class_weights
        if weights is not None and (len(weights) != config.num_labels or not min(weights) >= 0):
            raise ValueError(
                f"class_weights are {weights}, expected {config.num_labels} numbers from 0 on, one a label."
            )
        labels, width = config.num_labels or 0, config.projection_dim
        self.vision_model = ItemizedCLIPVisionModel._from_config(config.vision)  # type: ignore[no-untyped-call]  # the library's
        if config.classifier_head == "class_token":
            self.classifier = nn.Linear(config.vision.hidden_size, labels)
        else:
            self.visual_projection = nn.Linear(config.vision.hidden_size, width, bias=False)
            if config.scoring == "items":
                self.item_pooler = ItemizedCLIPItemPooler(width, config.num_pooler_heads)
            self.label_queries = nn.Parameter(torch.zeros(labels, width))
            self.logit_scale = nn.Parameter(torch.zeros(1))
            self.logit_bias = nn.Parameter(torch.zeros(1))
        self.post_init()  # type: ignore[no-untyped-call]  # of the library, without types

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if not isinstance(module, ItemizedCLIPForImageClassification):
            return
        if self.config.classifier_head == "class_token":
            init.zeros_(module.classifier.weight)
            init.zeros_(module.classifier.bias)
            return
        init.normal_(module.visual_projection.weight, std=module.visual_projection.in_features**-0.5)
        init.normal_(module.label_queries, std=self.config.projection_dim**-0.5)
        init.constant_(module.logit_scale, self.config.logit_scale_init_value)
        init.constant_(module.logit_bias, self.config.logit_bias_init_value)

    @classmethod
    def from_model(
        cls,
        model: ItemizedCLIPModel,
        labels: Sequence[str],
        problem_type: str = MULTI_LABEL,
        head: str = "items",
        class_weights: Sequence[float] | None = None,
    ) -> "ItemizedCLIPForImageClassification":
        """
        A classifier of its own with the image side of a model; the queries are random, the linear layer holds zeros.

        Args:
            labels: their names, in the order of the logits.
            problem_type: `"multi_label_classification"`, where several may hold, or `"single_label_classification"`.
            head, class_weights: see `classifier_head` and `class_weights` of [`ItemizedCLIPConfig`].

        Raises:
            ValueError: there are no labels, or two of one name.
        """
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"the labels are {list(labels)}, expected at least one, and no name twice.")
        config = copy.deepcopy(model.config)
        config.id2label, config.label2id = dict(enumerate(labels)), {name: place for place, name in enumerate(labels)}
        config.architectures = [cls.__name__]
        config.problem_type, config.classifier_head = problem_type, head  # type: ignore[assignment]  # checked below
        config.class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        config.validate()
        classifier: ItemizedCLIPForImageClassification = cls._from_config(config, dtype=model.dtype)  # type: ignore[no-untyped-call]  # the library's
        known = classifier.state_dict()
        classifier.load_state_dict({k: v for k, v in model.state_dict().items() if k in known}, strict=False)
        classifier.train(model.training).to(model.device)
        return classifier

    @classmethod
    @torch.no_grad()
    def from_prompts(
        cls, model: ItemizedCLIPModel, processor: Any, prompts: Mapping[str, str | Sequence[str]], **settings: Any
    ) -> "ItemizedCLIPForImageClassification":
        """
        A classifier that starts as the zero-shot classifier of a model: a label's query is its text's embedding, of several
        texts the mean of their embeddings, normalized before and after, as in zero-shot evaluation.

        Its logits are the model's `logits_per_image` for these texts (`itemized-clip predict --scores logit`); the similarity
        that protocols use pools from normalized tokens, and differs by some thousandths.

        Args:
            processor: [`ItemizedCLIPProcessor`] of the model.
            prompts: label -> text or texts.
            settings: `problem_type` and `class_weights` of `from_model`.
        """
        groups = {label: [texts] if isinstance(texts, str) else list(texts) for label, texts in prompts.items()}
        without = [label for label, texts in groups.items() if not texts]
        if without:
            raise ValueError(f"the labels {without} have no text: a query starts from at least one.")
        classifier = cls.from_model(model, list(groups), **settings)
        for place, texts in enumerate(groups.values()):
            encoded = processor(text=texts, return_tensors="pt").to(model.device)
            embeds: Any = model.get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output
            mean = embeds[0] if len(texts) == 1 else F.normalize(F.normalize(embeds, dim=-1).mean(0), dim=-1)
            classifier.label_queries[place] = mean
        return classifier

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding of the vision tower."""
        embedding: nn.Module = self.vision_model.get_input_embeddings()
        return embedding

    @property
    def label_names(self) -> list[str]:
        """Names of the labels, in the order of the logits."""
        names: dict[int, str] = self.config.id2label or {}  # type: ignore[assignment]  # numbers, once it is built
        return [names[place] for place in range(len(names))]

    def encode_images(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, BaseModelOutputWithPooling]:
        """Class token (B, P) and patch tokens (B, L, P) as in [`ItemizedCLIPModel`], of width C where nothing projects them."""
        outputs: Any = self.vision_model(
            pixel_values, scan_mask=scan_mask, scan_name_ids=scan_name_ids, **{**kwargs, "return_dict": True}
        )
        class_token, tokens = outputs.pooler_output, outputs.last_hidden_state[:, 1:]
        if self.config.classifier_head == "class_token":
            return class_token, tokens, outputs
        return self.visual_projection(class_token), self.visual_projection(tokens), outputs

    def score_labels(
        self, image_embeds: torch.Tensor, image_tokens: torch.Tensor, token_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits (B, labels) of what `encode_images` returns; `token_mask` (B, L) is True for tokens of real scans."""
        if self.config.classifier_head == "class_token":
            logits: torch.Tensor = self.classifier(image_embeds)
            return logits
        if self.config.scoring == "global":
            scores = global_similarity(self.label_queries, image_embeds)
        else:
            scores = pooled_similarity(self.item_pooler, self.label_queries, image_tokens, token_mask)
        return (scores * self.logit_scale.float().exp() + self.logit_bias.float()).to(image_tokens.dtype)

    def label_attentions(
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Where each label looks: attention (B, labels, L) of its query to the tokens of the study, mean over heads, in (scan,
        depth, height, width) order; rows sum to at most 1.

        Raises:
            ValueError: there is no item pooler: the labels are read off the class token.
        """
        if not hasattr(self, "item_pooler"):
            raise ValueError("this head reads the class token, which has no attention of its own for each label.")
        _, tokens, _ = self.encode_images(pixel_values, scan_mask, scan_name_ids)
        keep = None if scan_mask is None else spread_scan_mask(scan_mask, tokens.shape[1])[:, None, None]
        queries = self.label_queries[None].expand(len(tokens), -1, -1)
        attention: torch.Tensor = self.item_pooler(queries, tokens, keep, output_attentions=True)[1]
        return attention

    @can_return_tuple  # type: ignore[untyped-decorator]  # of the library, without types
    def forward(  # type: ignore[misc]  # two flags are parameters of their own and keys of the library's arguments
        self,
        pixel_values: torch.Tensor,
        scan_mask: torch.Tensor | None = None,
        scan_name_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Logits of the labels, and the loss where labels are given.

        Args:
            pixel_values, scan_mask, scan_name_ids: as in the vision tower.
            labels: (B,) numbers of classes, of which one holds (cross entropy), or (B, labels) of 0 and 1 (binary cross
                entropy of each); -100 and NaN are unknown and count nothing.

        Returns:
            `logits` (B, labels), `loss`, the mean over the known labels; hidden states and attentions of the vision tower.
        """
        kwargs.pop("num_items_in_batch", None)
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        kwargs.update({name: value for name, value in asked.items() if value is not None})
        image_embeds, tokens, vision = self.encode_images(pixel_values, scan_mask, scan_name_ids, **kwargs)
        token_mask = None if scan_mask is None else spread_scan_mask(scan_mask, tokens.shape[1])
        logits = self.score_labels(image_embeds, tokens, token_mask)
        loss = None if labels is None else self.classification_loss(logits, labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=vision.hidden_states, attentions=vision.attentions
        )

    def classification_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """
        Mean over the known labels, weighted by `config.class_weights`; 0 where none is known.

        Raises:
            ValueError: the labels are not of the shape that the kind of problem asks for.
        """
        config = self.config
        if self.training:
            config.architectures = [type(self).__name__]  # of a folder of ItemizedCLIPModel no more
        if config.problem_type is None:
            config.problem_type = MULTI_LABEL if labels.ndim == 2 else SINGLE_LABEL  # type: ignore[assignment]  # one of them
        expected = logits.shape if config.problem_type == MULTI_LABEL else logits.shape[:1]
        if labels.shape != expected:
            raise ValueError(
                f"labels have the shape {tuple(labels.shape)}, {config.problem_type} with {config.num_labels} labels takes "
                f"{tuple(expected)}."
            )
        labels, logits = labels.to(logits.device), logits.float()
        weights = None if config.class_weights is None else logits.new_tensor(config.class_weights)
        if config.problem_type == SINGLE_LABEL:
            known = (labels != UNKNOWN).sum().clamp(min=1)
            summed = F.cross_entropy(logits, labels.long(), weights, ignore_index=UNKNOWN, reduction="sum")
            return summed / known
        is_known = ~(labels.isnan() | (labels == UNKNOWN))
        truths = torch.where(is_known, labels.to(logits.dtype), 0)
        each = F.binary_cross_entropy_with_logits(logits, truths, pos_weight=weights, reduction="none")
        return torch.where(is_known, each, 0).sum() / is_known.sum().clamp(min=1)
