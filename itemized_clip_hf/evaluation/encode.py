"""Studies through the vision tower, batch by batch: what every evaluation starts from."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from ..modeling.classification_itemized_clip import ItemizedCLIPForImageClassification
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..modeling.vision_itemized_clip import spread_scan_mask
from ..processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor

T = TypeVar("T")

ImageEncoder = ItemizedCLIPModel | ItemizedCLIPForImageClassification
"""What has `encode_images`."""

TEXTS_AT_ONCE = 256
"""Texts of one pass through the text tower."""

SCANS_AT_ONCE = 32
"""Scans of one pass through the vision tower, padding included; a study that has more is a batch by itself."""


@dataclass
class Closed:
    """A study that `encode_studies` opens when its turn comes; what goes wrong then is reported in its place."""

    open: Callable[[], Any]


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
def encode_inputs(model: ImageEncoder, inputs: Mapping[str, torch.Tensor]) -> EncodedStudies:
    """Image inputs of the processor, on the model's device, through the tower."""
    mask = inputs.get("scan_mask")
    embeds, tokens, _ = model.encode_images(inputs["pixel_values"], mask, inputs.get("scan_name_ids"))
    spread = None if mask is None else spread_scan_mask(mask, tokens.shape[1])
    return EncodedStudies(list(range(len(tokens))), embeds, tokens, spread)


def encode_studies(
    model: ImageEncoder,
    processor: ItemizedCLIPProcessor | ItemizedCLIPImageProcessor,
    studies: Iterable,
    batch_size: int = 8,
    progress: str | None = None,
    on_error: Callable[[int, Exception], None] | None = None,
    on_bad_scan: Callable[[int, str | None, Exception], None] | None = None,
    accept: Sequence[str] | None = None,
    num_workers: int = 0,
    layout: str | None = None,
    image_processor_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[EncodedStudies]:
    """
    Args:
        processor: or its image processor alone.
        studies: anything the processor takes as one study, each, or [`Closed`]; asked for one batch at a time.
        progress: what the bar says; no bar if None.
        on_error: called with the number of a study that cannot be read, and why; it is missing from the batches. Without it the
            error is raised.
        on_bad_scan: called with the number of a study, the name of a scan that is left out of it, and why.
        accept: codes of the checks that a scan is used in spite of; the image processor's own if None.
        layout: what the files of a folder are, see `data.layout.Layout`; the image processor's own if None.
        num_workers: threads that open and process the next studies while the model is at work; the results, their order and
            what is reported are the same for any number.
        image_processor_kwargs: changes to the settings of the image processor.

    Raises:
        ValueError: the number of threads is below 0, or the image processor has no such setting.
    """
    from tqdm.auto import tqdm

    check_workers(num_workers)
    image_processor: Any = getattr(processor, "image_processor", processor)
    settings = settings_of(image_processor, image_processor_kwargs, accept=accept, layout=layout)
    encode = partial(_encode_batch, model, image_processor, {k: settings[k] for k in settings if k == "use_scan_names"})
    batch: list[tuple[int, list]] = []
    jobs = (partial(_process, image_processor, study, settings, on_bad_scan is not None) for study in studies)
    total = len(studies) if isinstance(studies, Sized) else None
    bar = tqdm(in_order(jobs, num_workers), desc=progress, unit="study", total=total, disable=progress is None)
    for number, (scans, lost, error) in enumerate(bar):
        for scan, reason in lost:
            on_bad_scan(number, scan, reason)  # type: ignore[misc]
        if error is not None:
            if on_error is None:
                raise error
            on_error(number, error)
            continue
        most_scans = max(len(scans), *(len(own) for _, own in batch)) if batch else 0
        if (len(batch) + 1) * most_scans > max(SCANS_AT_ONCE, batch_size):
            yield encode(batch)
            batch = []
        batch.append((number, scans))
        if len(batch) == batch_size:
            yield encode(batch)
            batch = []
    if batch:
        yield encode(batch)


def _encode_batch(
    model: ImageEncoder, image_processor: Any, settings: dict[str, Any], batch: list[tuple[int, list]]
) -> EncodedStudies:
    scans = [scans for _, scans in batch]
    inputs = image_processor.collate(scans, return_tensors="pt", **settings).to(model.device)
    encoded = encode_inputs(model, inputs)
    encoded.numbers, encoded.scans = [number for number, _ in batch], scans
    return encoded


def settings_of(
    image_processor: ItemizedCLIPImageProcessor, changes: Mapping[str, Any] | None, **others: Any
) -> dict[str, Any]:
    """
    Changes to the settings of an image processor and others that are not None.

    Raises:
        ValueError: the image processor has no such setting, and would pass over it.
    """
    settings = dict(changes or {})
    unknown = sorted(set(settings) - set(image_processor.valid_kwargs.__annotations__)) if settings else []
    if unknown:
        known = sorted(image_processor.valid_kwargs.__annotations__)
        raise ValueError(f"the image processor has no settings {unknown}; it has {known}.")
    return settings | {name: value for name, value in others.items() if value is not None}


def check_workers(num_workers: int) -> int:
    """Raises a ValueError where it is no number of threads."""
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise ValueError(f"the number of workers is {num_workers!r}, expected 0 or more threads.")
    return num_workers


def _process(
    image_processor: ItemizedCLIPImageProcessor, study: Any, settings: dict, skip: bool
) -> tuple[list, list, Exception | None]:
    """Processed scans of a study, (name, reason) of those that are left out, and what is wrong with the whole."""
    lost: list[tuple[str | None, Exception]] = []
    on_error = (lambda scan, error: lost.append((scan, error))) if skip else None
    try:
        opened = study.open() if isinstance(study, Closed) else study
        return image_processor.process_study(opened, on_error=on_error, **settings), lost, None
    except Exception as error:
        return [], lost, error


def in_order(jobs: Iterable[Callable[[], T]], num_workers: int = 0) -> Iterator[T]:
    """Results of jobs in their order; `num_workers` threads work ahead, on as many jobs at a time."""
    if not num_workers:
        yield from (job() for job in jobs)
        return
    pool, waiting, left = ThreadPoolExecutor(num_workers), deque[Future[T]](), iter(jobs)
    try:
        waiting.extend(pool.submit(job) for job in islice(left, num_workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(job) for job in islice(left, 1))
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@torch.no_grad()
def encode_texts(model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, texts: Iterable[str]) -> torch.Tensor:
    """Embeddings (M, P) of texts, projected, not normalised; each text is encoded once."""
    texts = list(texts)
    unique = sorted(set(texts), key=len)
    parts = []
    for start in range(0, len(unique), TEXTS_AT_ONCE):
        some = unique[start : start + TEXTS_AT_ONCE]
        encoded = processor(text=some, return_tensors="pt").to(model.device)  # type: ignore[call-arg]  # not in their TypedDict
        parts.append(model.get_text_features(encoded["input_ids"], encoded["attention_mask"]).pooler_output)
    places = {text: place for place, text in enumerate(unique)}
    if not parts:
        return torch.zeros(0, model.config.projection_dim, device=model.device)
    return torch.cat(parts)[torch.tensor([places[text] for text in texts], device=model.device)]


def encode_prompts(
    model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, prompts: Mapping[str, Any] | Iterable[str]
) -> tuple[list[str], torch.Tensor]:
    """
    Args:
        prompts: texts, or label -> text or templates; several templates are normalised, averaged and normalised again.

    Returns:
        labels, and their embeddings (M, P): raw for one text, unit length for averaged templates.
    """
    groups = texts_by_label(prompts)
    embeds = iter(encode_texts(model, processor, [text for texts in groups.values() for text in texts]))
    averaged = []
    for texts in groups.values():
        group = torch.stack([next(embeds) for _ in texts])
        averaged.append(group[0] if len(texts) == 1 else F.normalize(F.normalize(group, dim=-1).mean(0), dim=-1))
    return list(groups), torch.stack(averaged)


def texts_by_label(prompts: Mapping[str, str | Sequence[str]] | Iterable[str]) -> dict[str, list[str]]:
    """
    Label -> texts; texts without labels are their own.

    >>> texts_by_label({"bleed": "a bleed", "mass": ("a mass", "a tumor")})
    {'bleed': ['a bleed'], 'mass': ['a mass', 'a tumor']}
    >>> texts_by_label(["a bleed"])
    {'a bleed': ['a bleed']}
    """
    named = prompts if isinstance(prompts, Mapping) else {text: text for text in prompts}
    return {label: [texts] if isinstance(texts, str) else list(texts) for label, texts in named.items()}
