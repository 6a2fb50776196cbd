"""One study through the vision tower once; its findings are scored and shown as often as they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.checks import Report
from ..evaluation.encode import EncodedStudies, encode_inputs, encode_prompts, encode_texts
from ..evaluation.quantity import DEFAULT, check_quantity, convert, normalizes_pool_inputs, without_calibration
from ..evaluation.zero_shot import score_encoded
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..processing.scans_itemized_clip import ProcessedScan
from .attribution import BEST, attribute, check_attribution, require_pooler
from .maps import display_window, relate_to_mean
from .result import Finding, StudyResult


@dataclass
class EncodedStudy:
    """
    A study after the vision tower.

    Args:
        study: its id.
        scans: as the model saw them.
        encoded: their tokens; a batch of one.
        mean, std: by which pixels were normalized, one number per channel.
        reports: of `data.checks`, one per scan that came from a file.
        notes: what was left out, and why.
        windows: HU that pictures of each scan show; None: by its percentiles.
    """

    study: str
    scans: list[ProcessedScan]
    encoded: EncodedStudies
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reports: list[Report] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    windows: tuple[tuple[float, float] | None, ...] = ()


@torch.no_grad()
def encode_study(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: Any,
    study_id: str = "study",
    on_bad_scan: Callable[[str | None, Exception], Any] | None = None,
) -> EncodedStudy:
    """
    Args:
        study: anything the processor takes as one study.
        study_id: how results call it.
        on_bad_scan: called with the name of a scan that is left out, and why; without it the error is raised.

    Raises:
        ValueError: the model has no attention to show, or the study cannot be used.
    """
    require_pooler(model)
    notes: list[str] = []

    def leave_out(name: str | None, error: Exception) -> None:
        notes.append(f"{name or 'a scan'} was left out: {error}")
        if on_bad_scan is not None:
            on_bad_scan(name, error)

    image_processor = processor.image_processor
    scans = image_processor.process_study(study, on_error=None if on_bad_scan is None else leave_out)
    inputs = image_processor.collate([scans], return_tensors="pt").to(model.device)
    mean, std = tuple(image_processor.image_mean), tuple(image_processor.image_std)
    windows = tuple(display_window(image_processor, scan) for scan in scans)
    return EncodedStudy(study_id, scans, encode_inputs(model, inputs), mean, std, _reports(scans), notes, windows)


def _reports(scans: Sequence[ProcessedScan]) -> list[Report]:
    """What the checks said of each source; the windows of one series share theirs."""
    sources = {id(scan.source): scan.source for scan in scans}
    reports = [getattr(source, "report", None) for source in sources.values()]
    return [report for report in reports if report is not None]


@torch.no_grad()
def explain_encoded(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: EncodedStudy,
    prompts: Mapping[str, Any] | Sequence[str],
    quantity: str = DEFAULT,
    about: Mapping[str, Any] | None = None,
    attribution: str = BEST,
) -> StudyResult:
    """
    Scores of findings, and where the model looked for each; only texts pass through a tower.

    Args:
        study: from `encode_study`, by the same model.
        prompts: texts, or label -> text or texts, whose embeddings are averaged.
        quantity: similarity, logit or sigmoid; a probability is uncalibrated here, and called the sigmoid.
        about: what identifies the result, e.g. `provenance.describe_model`; ready for JSON.
        attribution: what heat maps show, a name of `explain.attribution.ATTRIBUTIONS`.

    Raises:
        ValueError: there are no prompts, or no such quantity or attribution.
    """
    quantity = without_calibration(check_quantity(quantity))
    check_attribution(attribution)
    labels, texts, embeds = _encode_findings(model, processor, prompts)
    encoded = study.encoded
    similarities = score_encoded(model, embeds, encoded)
    pooled = similarities
    if not normalizes_pool_inputs(quantity):
        pooled = score_encoded(model, embeds, encoded, normalize_pool_inputs=False)
    scores = convert(model, pooled, quantity)[0]
    attention = attribute(model, embeds[None], encoded.tokens, encoded.keep_mask, attribution)[0]
    scan_size = study.scans[0].pixel_values.shape[1:]
    grid = tuple(n // m for n, m in zip(scan_size, model.config.vision.patch_shape))
    relative, shares = relate_to_mean(attention, len(study.scans), grid)
    findings = [Finding(label, texts[k], float(scores[k]), shares[k], relative[k]) for k, label in enumerate(labels)]
    return StudyResult(
        study.study,
        quantity,
        findings,
        study.scans,
        study.mean,
        study.std,
        tuple(float(value) for value in similarities[0]),
        study.reports,
        list(study.notes),
        dict(about or {}),
        attribution,
        study.windows,
    )


def _encode_findings(
    model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, prompts: Mapping[str, Any] | Sequence[str]
) -> tuple[list[str], list[tuple[str, ...]], torch.Tensor]:
    """Labels, texts of each, and embeddings (M, P); a text that is listed twice is two findings."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not prompts:
        raise ValueError("there are no findings to look for: pass texts, or label -> texts.")
    if not isinstance(prompts, Mapping):
        return list(prompts), [(text,) for text in prompts], encode_texts(model, processor, prompts)
    texts = [(one,) if isinstance(one, str) else tuple(one) for one in prompts.values()]
    labels, embeds = encode_prompts(model, processor, prompts)
    return labels, texts, embeds


def explain_result(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: Any,
    prompts: Mapping[str, Any] | Sequence[str],
    study_id: str = "study",
    quantity: str = DEFAULT,
    on_bad_scan: Callable[[str | None, Exception], Any] | None = None,
    about: Mapping[str, Any] | None = None,
    attribution: str = BEST,
) -> StudyResult:
    """`encode_study` and `explain_encoded` of one study."""
    check_attribution(attribution)
    encoded = encode_study(model, processor, study, study_id, on_bad_scan)
    return explain_encoded(model, processor, encoded, prompts, quantity, about, attribution)
