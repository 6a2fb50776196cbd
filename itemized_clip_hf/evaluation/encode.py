"""Studies through the vision tower, batch by batch: what every evaluation starts from."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from ..data.study import Unreadable
from ..modeling.modeling_itemized_clip import spread_scan_mask

TEXTS_AT_ONCE = 256
"""Texts of one pass through the text tower."""

SCANS_AT_ONCE = 32
"""Scans of one pass through the vision tower, padding included; a study that has more is a batch by itself."""


class OpenOneByOne:
    """Studies that are opened when their turn comes; what cannot be is reported in its place."""

    def __init__(self, openers: Sequence[Callable[[], Any]]):
        self.openers = openers

    def __len__(self) -> int:
        return len(self.openers)

    def __iter__(self):
        for opener in self.openers:
            try:
                yield opener()
            except Exception as error:
                yield Unreadable(error)


@dataclass
class EncodedStudies:
    """
    Some studies after the vision tower.

    Args:
        numbers: their places in the list.
        image_embeds: (B, P), class tokens, not normalised.
        tokens: (B, L, P), projected, not normalised.
        token_mask: (B, L), True for tokens of real scans; None: all are.
        scans: processed scans of each study.
    """

    numbers: list[int]
    image_embeds: torch.Tensor
    tokens: torch.Tensor
    token_mask: torch.Tensor | None
    scans: list[list] = field(default_factory=list)

    @property
    def keep_mask(self) -> torch.Tensor | None:
        """(B, 1, 1, L), for the pooler."""
        return None if self.token_mask is None else self.token_mask[:, None, None]


@torch.no_grad()
def encode_inputs(model, inputs: Mapping[str, torch.Tensor]) -> EncodedStudies:
    """Image inputs of the processor, on the model's device, through the tower."""
    mask = inputs.get("scan_mask")
    embeds, tokens, _ = model.encode_images(inputs["pixel_values"], mask, inputs.get("scan_name_ids"))
    spread = None if mask is None else spread_scan_mask(mask, tokens.shape[1])
    return EncodedStudies(list(range(len(tokens))), embeds, tokens, spread)


def encode_studies(
    model,
    processor,
    studies: Iterable,
    batch_size: int = 8,
    progress: str | None = None,
    on_error: Callable[[int, Exception], None] | None = None,
    on_bad_scan: Callable[[int, str | None, Exception], None] | None = None,
    accept: Sequence[str] | None = None,
) -> Iterator[EncodedStudies]:
    """
    Args:
        studies: anything the processor takes as one study, each; opened one batch at a time.
        progress: what the bar says; no bar if None.
        on_error: called with the number of a study that cannot be read, and why; it is missing from the batches. Without it the
            error is raised.
        on_bad_scan: called with the number of a study, the name of a scan that is left out of it, and why.
        accept: codes of the checks that a scan is used in spite of; the image processor's own if None.
    """
    from tqdm.auto import tqdm

    image_processor = processor.image_processor
    settings = {} if accept is None else {"accept": accept}
    batch: list[tuple[int, list]] = []

    def encode() -> EncodedStudies:
        scans = [scans for _, scans in batch]
        encoded = encode_inputs(model, image_processor.collate(scans, return_tensors="pt").to(model.device))
        encoded.numbers, encoded.scans = [number for number, _ in batch], scans
        batch.clear()
        return encoded

    for number, study in enumerate(tqdm(studies, desc=progress, unit="study", disable=progress is None)):
        try:
            skip = None if on_bad_scan is None else partial(on_bad_scan, number)
            scans = image_processor.process_study(study, on_error=skip, **settings)
        except Exception as error:
            if on_error is None:
                raise
            on_error(number, error)
            continue
        if batch and (len(batch) + 1) * max(len(scans), *(len(own) for _, own in batch)) > max(
            SCANS_AT_ONCE, batch_size
        ):
            yield encode()
        batch.append((number, scans))
        if len(batch) == batch_size:
            yield encode()
    if batch:
        yield encode()


@torch.no_grad()
def encode_texts(model, processor, texts: Iterable[str]) -> torch.Tensor:
    """Embeddings (M, P) of texts, projected, not normalised; each text is encoded once."""
    texts = list(texts)
    unique = sorted(set(texts), key=len)
    parts = []
    for start in range(0, len(unique), TEXTS_AT_ONCE):
        encoded = processor(text=unique[start : start + TEXTS_AT_ONCE], return_tensors="pt").to(model.device)
        parts.append(model.get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output)
    places = {text: place for place, text in enumerate(unique)}
    if not parts:
        return torch.zeros(0, model.config.projection_dim, device=model.device)
    return torch.cat(parts)[torch.tensor([places[text] for text in texts], device=model.device)]


def encode_prompts(model, processor, prompts: Mapping[str, Any] | Iterable[str]) -> tuple[list[str], torch.Tensor]:
    """
    Args:
        prompts: texts, or label -> text or templates; several templates are normalised, averaged and normalised again.

    Returns:
        labels, and their embeddings (M, P): raw for one text, unit length for averaged templates.
    """
    if not isinstance(prompts, Mapping):
        prompts = {text: [text] for text in prompts}
    groups = [[texts] if isinstance(texts, str) else list(texts) for texts in prompts.values()]
    embeds = iter(encode_texts(model, processor, [text for texts in groups for text in texts]))
    averaged = []
    for texts in groups:
        group = torch.stack([next(embeds) for _ in texts])
        averaged.append(group[0] if len(texts) == 1 else F.normalize(F.normalize(group, dim=-1).mean(0), dim=-1))
    return list(prompts), torch.stack(averaged)
