"""A second look at reports: items that the images hardly bear out, and findings that they show and no item mentions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from ..data.layout import Layout
from ..evaluation.calibration import Calibration, load_calibration
from ..evaluation.encode import Closed, encode_prompts, encode_studies, encode_texts, texts_by_label
from ..evaluation.mentions import find_mentions, similarities
from ..evaluation.protocols.images import open_record
from ..evaluation.score_file import ScoreFile
from ..evaluation.text_table import null_for_nan
from ..evaluation.zero_shot import score_encoded
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor

MISSING, UNSUPPORTED = "missing", "unsupported"
LOW, HIGH = 5.0, 50.0
"""Percentiles: of the scores of all items, and of a finding's scores in the studies whose report mentions it."""
MIN_MENTIONS = 5
"""Reports that have to mention a finding before their scores say what high is."""
CAUTION = (
    "Questions to a reader, not findings: a model compared the report with the images, and may be wrong about both."
)


@dataclass(frozen=True)
class Question:
    """
    Something to look at once more.

    Args:
        study: its id.
        kind: `"missing"`: a finding with a high score that no item mentions; `"unsupported"`: an item with a low score.
        text: the finding's name, or the item.
        score: similarity of study and text.
        threshold: that the score lies above, or below.
        percentile: share, in percent, of what it is compared with that scores lower: a finding's scores in the studies whose
            reports mention it, NaN without any; all items.
        nearest: item of the report whose text is nearest to a missing finding's prompt.
        text_similarity: cosine of that item's text and the prompt.
    """

    study: str
    kind: str
    text: str
    score: float
    threshold: float
    percentile: float
    nearest: str | None = None
    text_similarity: float = float("nan")

    @property
    def wording(self) -> str:
        """The question in words."""
        if self.kind == MISSING:
            return f"Do the images show this? No item mentions it: {self.text}"
        return f"Is this in the images? {self.text}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return null_for_nan({**asdict(self), "question": self.wording})


@dataclass
class Reports:
    """
    Reports of a cohort, what they mention, and the scores of their studies.

    Args:
        ids: S of them.
        items: of each report; none where a study has no report, which is then not asked about.
        prompts: finding -> texts.
        mentions: (S, M) of bool.
        nearest: (S, M), number of the item whose text is nearest to the finding's prompt, and their cosine.
        scores: (S, M) similarities of studies and findings; NaN where a study could not be read.
        item_scores: similarities of each study with its items.
    """

    ids: list[str]
    items: list[list[str]]
    prompts: dict[str, list[str]]
    mentions: np.ndarray
    nearest: tuple[np.ndarray, np.ndarray]
    scores: np.ndarray
    item_scores: list[np.ndarray]


@dataclass
class Review:
    """
    What is to be looked at once more.

    Args:
        questions: the most striking of each kind first, missing findings before items.
        low: similarity below which an item is asked about; NaN without items.
        high: finding -> similarity above which it is asked about; NaN where nothing says what high is.
        sources: finding -> where its threshold comes from, for people.
        studies, items: that were looked at.
        settings: percentiles.
    """

    questions: list[Question]
    low: float
    high: dict[str, float]
    sources: dict[str, str]
    studies: int
    items: int
    settings: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the caution."""
        content = {
            "caution": CAUTION,
            "studies": self.studies,
            "items": self.items,
            **self.settings,
            "thresholds": {
                "item": {"score": self.low, "source": self.describe_low()},
                **{name: {"score": self.high[name], "source": source} for name, source in self.sources.items()},
            },
            "questions": [question.to_dict() for question in self.questions],
        }
        return null_for_nan(content)

    def describe_low(self) -> str:
        """What a low score of an item is, for people."""
        return f"the lowest {self.settings['low']:g} % of {self.items} items"


def embed_reports(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    ids: Sequence[str],
    items: Sequence[Sequence[str]],
    prompts: Mapping[str, Sequence[str]],
) -> tuple[Reports, torch.Tensor, torch.Tensor]:
    """
    What reports mention, without any image.

    Returns:
        reports without scores; embeddings (M, P) of the findings, and (T, P) of the items in the order of all reports.
    """
    _, prompt_embeds = encode_prompts(model, processor, prompts)
    texts = [text for own in items for text in own]
    embeds = encode_texts(model, processor, texts)
    found = find_mentions(texts, embeds.float().cpu().numpy(), prompts, prompt_embeds.float().cpu().numpy())
    near = similarities(embeds.float().cpu().numpy(), prompt_embeds.float().cpu().numpy()) if texts else found
    shape, start = (len(ids), len(prompts)), 0
    mentions, nearest, cosines = np.zeros(shape, bool), np.zeros(shape, int), np.full(shape, np.nan)
    for row, own in enumerate(items):
        part = slice(start, start + len(own))
        start = part.stop
        if own:
            mentions[row], nearest[row], cosines[row] = found[part].any(0), near[part].argmax(0), near[part].max(0)
    empty = [np.full(len(own), np.nan) for own in items]
    reports = Reports(
        list(ids),
        [list(own) for own in items],
        texts_by_label(prompts),
        mentions,
        (nearest, cosines),
        np.full(shape, np.nan),
        empty,
    )
    return reports, prompt_embeds, embeds


def score_reports(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    reports: Reports,
    embeds: tuple[torch.Tensor, torch.Tensor],
    studies: Iterable,
    names: Sequence[str],
    kept: ScoreFile,
    **encoding: Any,
) -> None:
    """
    Fills in the scores of reports: each study with all findings and with its own items.

    Args:
        embeds: of findings and items, from `embed_reports`.
        studies: those that `kept` does not hold yet, see `encode_studies`.
        names: id of each of them; may grow while they are read.
        kept: scores of findings, then of items; a run that was stopped goes on with it.
        encoding: further arguments of `encode_studies`.
    """
    prompt_embeds, item_embeds = embeds
    row_of = {name: row for row, name in enumerate(reports.ids)}
    starts = np.cumsum([0, *(len(own) for own in reports.items)])
    for encoded in encode_studies(model, processor, studies, **encoding):
        rows = [row_of[names[number]] for number in encoded.numbers]
        parts = [item_embeds[starts[row] : starts[row + 1]] for row in rows]
        scores = score_encoded(model, torch.cat([prompt_embeds, *parts]), encoded)
        offset = len(prompt_embeds)
        for place, part in enumerate(parts):
            own = scores[place, [*range(len(prompt_embeds)), *range(offset, offset + len(part))]]
            offset += len(part)
            if np.isnan(own).any():
                error = ValueError("the model gave scores that are not numbers: its weights are damaged.")
                encoding["on_error"](encoded.numbers[place], error)
            else:
                kept.add(reports.ids[rows[place]], own)
    for row, name in enumerate(reports.ids):
        if name in kept:
            reports.scores[row] = kept.scores[name][: len(prompt_embeds)]
            reports.item_scores[row] = kept.scores[name][len(prompt_embeds) :]


def find_questions(
    reports: Reports,
    low: float = LOW,
    high: float = HIGH,
    thresholds: Mapping[str, float] | None = None,
    source: str = "calibration",
) -> Review:
    """
    Compares reports with the scores of their studies.

    Args:
        low: percentile of all items' scores below which an item is asked about.
        high: percentile of a finding's scores in the studies whose report mentions it, above which it is asked about elsewhere.
        thresholds: finding -> similarity that takes the place of that percentile, see `calibrated_thresholds`.
        source: where these come from, for people.

    Raises:
        ValueError: a percentile is not between 0 and 100.
    """
    for name, value in {"low": low, "high": high}.items():
        if not 0 <= value <= 100:
            raise ValueError(f"{name} is {value:g}, expected a percentile from 0 to 100.")
    seen = np.array([bool(own) for own in reports.items], bool) & ~np.isnan(reports.scores).any(1)
    missing, above, sources = _missing(reports, seen, high, dict(thresholds or {}), source)
    every = np.sort(np.concatenate([reports.item_scores[row] for row in np.flatnonzero(seen)] or [np.zeros(0)]))
    below = float(np.quantile(every, low / 100)) if len(every) else float("nan")
    unsupported = [
        Question(reports.ids[row], UNSUPPORTED, text, float(score), below, _percentile(every, float(score)))
        for row in np.flatnonzero(seen)
        for text, score in zip(reports.items[row], reports.item_scores[row])
        if score < below
    ]
    unsupported.sort(key=lambda one: one.percentile)
    settings = {"low": low, "high": high}
    return Review([*missing, *unsupported], below, above, sources, int(seen.sum()), len(every), settings)


def _missing(
    reports: Reports, seen: np.ndarray, high: float, thresholds: dict[str, float], source: str
) -> tuple[list[Question], dict[str, float], dict[str, str]]:
    """Questions about findings, the threshold of each finding, and where it comes from."""
    questions, above, sources = [], {}, {}
    nearest, cosines = reports.nearest
    for column, name in enumerate(reports.prompts):
        mentioned = seen & reports.mentions[:, column]
        compared = np.sort(reports.scores[mentioned, column])
        if name in thresholds:
            above[name], sources[name] = thresholds[name], source
        elif len(compared) >= MIN_MENTIONS:
            above[name] = float(np.quantile(compared, high / 100))
            sources[name] = f"percentile {high:g} of the {len(compared)} studies whose report mentions it"
        else:
            above[name] = float("nan")
            sources[name] = f"none: {len(compared)} reports mention it, {MIN_MENTIONS} are needed"
        for row in np.flatnonzero(seen & ~reports.mentions[:, column] & (reports.scores[:, column] > above[name])):
            questions.append(
                Question(
                    reports.ids[row],
                    MISSING,
                    name,
                    float(reports.scores[row, column]),
                    above[name],
                    _percentile(compared, float(reports.scores[row, column])),
                    reports.items[row][nearest[row, column]],
                    float(cosines[row, column]),
                )
            )
    return sorted(questions, key=lambda one: -np.nan_to_num(one.percentile)), above, sources


def _percentile(ordered: np.ndarray, score: float) -> float:
    """Share, in percent, of ascending scores that are lower; NaN without any."""
    return float(100 * np.searchsorted(ordered, score) / len(ordered)) if len(ordered) else float("nan")


def calibrated_thresholds(
    calibration: Calibration | None, prompts: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], str]:
    """Thresholds of the findings that have any at the calibration's operating point, and what that is, for people."""
    thresholds: dict[str, float] = {}
    if calibration is None:
        return thresholds, ""
    for name, texts in texts_by_label(prompts).items():
        finding = calibration.of_prompts(texts)
        point = None if finding is None else finding.points.get(calibration.point)
        if point is not None and point.threshold.is_known:
            thresholds[name] = point.threshold.value
    return thresholds, f"operating point {calibration.point} of the calibration by {calibration.protocol}"


def review_reports(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    studies: Sequence[Mapping[str, Any]],
    prompts: Mapping[str, Sequence[str]],
    low: float = LOW,
    high: float | None = None,
    scores_file: Any = None,
    **encoding: Any,
) -> Review:
    """
    A second look at the reports of a list of studies.

    Args:
        studies: `id`, `images` (paths, or anything the processor takes) and `items` of each, e.g. from `read_records`.
        prompts: finding -> texts.
        low, high: as of `find_questions`; without `high` operating points of the model's calibration, where it has one.
        scores_file: keeps scores; a run that was stopped goes on with it.
        encoding: further arguments of `encode_studies`; with `on_error` studies that cannot be read are left out.
    """
    from ..provenance import hash_json, hash_model, hash_processor

    ids, items = [str(study["id"]) for study in studies], [list(study["items"] or ()) for study in studies]
    reports, *embeds = embed_reports(model, processor, ids, items, prompts)
    hashes = {"model": hash_model(model), "processor": hash_processor(processor)}
    kept = ScoreFile(scores_file, {**hashes, "reports": hash_json([ids, items, list(prompts.items())])})
    left = [study for study in studies if str(study["id"]) not in kept]
    opening = partial(open_record, layout=Layout.of_processor(processor))
    closed = [Closed(partial(opening, dict(study))) for study in left]
    names = [str(study["id"]) for study in left]
    calibration = load_calibration(model, processor) if high is None else None
    score_reports(model, processor, reports, (embeds[0], embeds[1]), closed, names, kept, **encoding)
    return find_questions(reports, low, HIGH if high is None else high, *calibrated_thresholds(calibration, prompts))
