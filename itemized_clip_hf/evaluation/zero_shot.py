"""Zero-shot scores: every prompt against every study, by itself (spec 8.1)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from ..modeling.modeling_itemized_clip import spread_scan_mask


@torch.no_grad()
def encode_prompts(
    model, processor, prompts: Mapping[str, list[str] | str] | Iterable[str]
) -> tuple[list[str], torch.Tensor]:
    """
    Args:
        prompts: texts, or label -> text or templates; several templates are normalised, averaged and normalised again.

    Returns:
        labels, and their embeddings (M, P): raw for one text, unit length for averaged templates.
    """
    if not isinstance(prompts, Mapping):
        prompts = {text: [text] for text in prompts}
    labels = list(prompts)
    groups = [[texts] if isinstance(texts, str) else list(texts) for texts in prompts.values()]
    flat = [text for texts in groups for text in texts]
    encoded = processor(text=flat, return_tensors="pt").to(model.device)
    embeds = model.get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output
    averaged, start = [], 0
    for texts in groups:
        group = embeds[start : start + len(texts)]
        start += len(texts)
        averaged.append(group[0] if len(texts) == 1 else F.normalize(F.normalize(group, dim=-1).mean(0), dim=-1))
    return labels, torch.stack(averaged)


def match_class(label: str, classes: Iterable[str]) -> str | None:
    """
    The class that a label of a data set names, compared by letters and digits alone: `BaseballField` is `baseball field`, and
    `DenseResidential`, which no class is called, is the only one that starts so: `dense residential area`. None if there is no
    such class.
    """

    def fold(name: str) -> str:
        return "".join(character for character in name.lower() if character.isalnum())

    folded = {fold(name): name for name in classes}
    if fold(label) in folded:
        return folded[fold(label)]
    longer = [name for key, name in folded.items() if key.startswith(fold(label))]
    return longer[0] if len(longer) == 1 else None


@torch.no_grad()
def score_batch(
    model, prompt_embeds: torch.Tensor, inputs: Mapping[str, torch.Tensor], normalize_pool_inputs: bool = True
) -> np.ndarray:
    """
    TCSim of a batch of studies with every prompt: (B, M) in [-1, 1].

    Args:
        prompt_embeds: (M, P) from `encode_prompts`.
        inputs: image inputs of the processor, on the model's device.
        normalize_pool_inputs: L2-normalise prompts and tokens before the pooler, as the published protocols do.
    """
    features = model.get_image_features(
        inputs["pixel_values"], scan_mask=inputs.get("scan_mask"), scan_name_ids=inputs.get("scan_name_ids")
    )
    tokens = model.visual_projection(features.last_hidden_state)
    if normalize_pool_inputs:
        prompt_embeds, tokens = F.normalize(prompt_embeds, dim=-1), F.normalize(tokens, dim=-1)
    mask = inputs.get("scan_mask")
    if mask is not None:
        mask = spread_scan_mask(mask, tokens.shape[1])
    return model.score_items(prompt_embeds, tokens, mask).float().cpu().numpy()


def score_studies(
    model,
    processor,
    studies: Iterable,
    prompts,
    batch_size: int = 8,
    normalize_pool_inputs: bool = True,
    progress: bool = False,
    on_error: Callable[[int, Exception], None] | None = None,
    on_bad_scan: Callable[[int, str | None, Exception], None] | None = None,
) -> tuple[list[str], np.ndarray]:
    """
    Args:
        studies: anything the processor takes as one study, each; read one batch at a time.
        prompts: as in `encode_prompts`.
        on_error: called with the number of a study that cannot be read, and why; its scores are NaN. Without it the error is
            raised.
        on_bad_scan: called with the number of a study, the name of a scan that is left out of it, and why.

    Returns:
        labels and scores (S, M).
    """
    from tqdm.auto import tqdm

    labels, prompt_embeds = encode_prompts(model, processor, prompts)
    image_processor = processor.image_processor
    scores: dict[int, np.ndarray] = {}
    batch: list[tuple[int, list]] = []
    count = 0

    def flush():
        if batch:
            inputs = image_processor.collate([scans for _, scans in batch], return_tensors="pt").to(model.device)
            rows = score_batch(model, prompt_embeds, inputs, normalize_pool_inputs)
            scores.update(zip((number for number, _ in batch), rows))
            batch.clear()

    for number, study in enumerate(tqdm(studies, desc="scoring", unit="study", disable=not progress)):
        count += 1
        try:
            skip = None if on_bad_scan is None else partial(on_bad_scan, number)
            batch.append((number, image_processor.process_study(study, on_error=skip)))
        except Exception as error:
            if on_error is None:
                raise
            on_error(number, error)
        if len(batch) == batch_size:
            flush()
    flush()
    missing = np.full(len(labels), np.nan, dtype=np.float32)
    return labels, np.stack([scores.get(number, missing) for number in range(count)]) if count else np.zeros(
        (0, len(labels))
    )
