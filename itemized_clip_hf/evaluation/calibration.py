"""What a model's scores are worth on one population: `calibration.json` beside its weights, and what it says of a study."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..data.files import whole_file, write_text
from ..models.names import CALIBRATION as FILE
from ..models.names import UNTRAINED, split_revision
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..provenance import hash_file, hash_model, hash_processor
from ..specs import read_json
from .operating_points import OperatingPoint, check_point
from .outliers import FAR_PERCENTILE, Distance
from .scaling import METHODS, Scaling
from .text_table import null_for_nan

CLOUD = "calibration.safetensors"
FORMAT = 1
_LARGEST = 64 << 20


@dataclass
class CalibratedFinding:
    """
    What the scores of a finding are worth.

    Args:
        prompts: whose score it is; several are averaged.
        positive, negative, unknown: validation studies by their label.
        scaling: makes probabilities; None where there is none.
        reason: why there is none.
        log_loss: of each method that was tried, cross-validated, in nats a study.
        points: operating points by name; none where there are too few studies.
    """

    prompts: list[str]
    positive: int
    negative: int
    unknown: int = 0
    scaling: Scaling | None = None
    reason: str = ""
    log_loss: dict[str, float] = field(default_factory=dict)
    points: dict[str, OperatingPoint] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        return {
            "prompts": self.prompts,
            "positive": self.positive,
            "negative": self.negative,
            "unknown": self.unknown,
            "method": None if self.scaling is None else self.scaling.method,
            **({} if self.scaling is None else self.scaling.to_dict()),
            **({"reason": self.reason} if self.reason else {}),
            "log_loss": self.log_loss,
            "operating_points": {name: point.to_dict() for name, point in self.points.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CalibratedFinding:
        """From `to_dict`; KeyError, TypeError or ValueError where it is not that."""
        method, count = content["method"], int(content["positive"]) + int(content["negative"])
        points = content["operating_points"].items()
        return cls(
            [str(text) for text in content["prompts"]],
            int(content["positive"]),
            int(content["negative"]),
            int(content.get("unknown", 0)),
            None if method is None else METHODS[method].from_dict(content),
            content.get("reason", ""),
            dict(content.get("log_loss", {})),
            {check_point(name): OperatingPoint.from_dict(name, row, count) for name, row in points},
        )


@dataclass
class Calibration:
    """
    Probabilities and thresholds of a model's similarities, for studies like those that it was made on.

    Args:
        model_sha256, processor_sha256: of what made the scores.
        protocol, title: whose findings.
        data: `studies`, and hashes of ids, of files and of labels; never ids.
        findings: name -> what its scores are worth.
        point: name of the operating point that says yes or no.
        distance: tells studies that are unlike the validation studies; None of too few.
        versions: of the packages that made it.
    """

    model_sha256: str
    processor_sha256: str
    protocol: str
    title: str
    data: dict[str, Any]
    findings: dict[str, CalibratedFinding]
    point: str
    distance: Distance | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    by_prompts: dict[tuple[str, ...], CalibratedFinding] = field(init=False, repr=False)

    def __post_init__(self):
        self.by_prompts = {tuple(one.prompts): one for one in self.findings.values()}

    def of_prompts(self, prompts: Sequence[str]) -> CalibratedFinding | None:
        """The finding that has these prompts and probabilities; None where there is none."""
        found = self.by_prompts.get(tuple(prompts))
        return found if found is not None and found.scaling is not None else None

    def judge(self, prompts: Sequence[str], scores: ArrayLike) -> list[Judgment] | None:
        """Of similarities (S,) of a finding with these prompts; None where they are uncalibrated."""
        finding = self.of_prompts(prompts)
        if finding is None or finding.scaling is None:
            return None
        scores = np.asarray(scores, dtype=np.float32).astype(float)
        values, (low, high) = finding.scaling.probability(scores), finding.scaling.interval(scores)
        point = finding.points.get(self.point)
        threshold = None if point is None else point.threshold.value
        return [
            Judgment(float(p), float(a), float(b), None if threshold is None else bool(s > threshold), self.point)
            for s, p, a, b in zip(scores, values, low, high)
        ]

    def with_point(self, name: str | None) -> Calibration:
        """The same with another operating point; ValueError where it has none of that name."""
        if name is None:
            return self
        name = check_point(name)
        known = list(dict.fromkeys(point for finding in self.findings.values() for point in finding.points))
        if name not in known:
            raise ValueError(f"the calibration has no operating point {name!r}; it has {', '.join(known) or 'none'}.")
        parts = {part: getattr(self, part) for part in self.__dataclass_fields__ if part not in ("by_prompts", "point")}
        return Calibration(point=name, **parts)

    def describe(self) -> dict[str, Any]:
        """What results say of it."""
        return {"protocol": self.protocol, "operating_point": self.point, **self.data}

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes `calibration.json`, and `calibration.safetensors` beside it, into a folder; the path of the first."""
        folder = Path(folder)
        content: dict[str, Any] = {
            "format": FORMAT,
            "protocol": self.protocol,
            "title": self.title,
            "quantity": "similarity",
            "model_sha256": self.model_sha256,
            "processor_sha256": self.processor_sha256,
            "data": self.data,
            "operating_point": self.point,
            "findings": {name: finding.to_dict() for name, finding in self.findings.items()},
            "distance": None,
            "versions": self.versions,
        }
        if self.distance is not None:
            content["distance"] = {
                "file": CLOUD,
                "sha256": _write_cloud(self.distance, folder / CLOUD),
                "studies": self.distance.studies,
                "percentiles": self.distance.percentiles.tolist(),
            }
        write_text(folder / FILE, json.dumps(null_for_nan(content), indent=1) + "\n")
        return folder / FILE

    @classmethod
    def read(cls, path: str | os.PathLike) -> Calibration:
        """
        From a `calibration.json`, whatever model it is of.

        Raises:
            ValueError: it is damaged, of a later version, or does not belong to the file beside it.
        """
        path = Path(path)
        content = read_json(path, dict, _LARGEST)
        if content.get("format") != FORMAT:
            raise ValueError(f"{path} has the format {content.get('format')!r}, expected {FORMAT}: update the package.")
        try:
            return cls(
                str(content["model_sha256"]),
                str(content["processor_sha256"]),
                str(content["protocol"]),
                str(content["title"]),
                dict(content["data"]),
                {name: CalibratedFinding.from_dict(row) for name, row in content["findings"].items()},
                check_point(content["operating_point"]),
                _read_cloud(path, content["distance"]),
                dict(content.get("versions", {})),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): calibrate the model again.") from None

    def check(self, model: PreTrainedModel, processor: ItemizedCLIPProcessor, where: str | os.PathLike) -> Calibration:
        """Itself; ValueError where it was made of other weights, another precision or another preprocessing."""
        if hash_weights(model) != self.model_sha256:
            raise ValueError(
                f"{where} was made with other weights than the model's, or with the same in another precision (now "
                f"{str(model.dtype).removeprefix('torch.')}): its probabilities would be wrong. Calibrate this "
                "model, remove the file, or go without (--calibration none; calibration=False)."
            )
        if hash_processor(processor) != self.processor_sha256:
            raise ValueError(
                f"{where} was made with another preprocessing or tokenizer: its probabilities would be wrong. Calibrate "
                "again, or go without (--calibration none; calibration=False)."
            )
        return self


@dataclass(frozen=True)
class Judgment:
    """
    What a calibrated score says.

    Args:
        probability, low, high: with the 95 % interval.
        positive: whether the score is above the operating point; None where the finding has none.
        point: its name.
    """

    probability: float
    low: float
    high: float
    positive: bool | None
    point: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        said = {} if self.positive is None else {"positive": self.positive, "operating_point": self.point}
        return {"probability": self.probability, "low": self.low, "high": self.high, **said}

    def __str__(self) -> str:
        said = "" if self.positive is None else f" {'yes' if self.positive else 'no'}"
        return f"{self.probability:.2f} ({self.low:.2f}-{self.high:.2f}){said}"


def load_calibration(
    model: PreTrainedModel,
    processor: ItemizedCLIPProcessor,
    source: Calibration | str | os.PathLike | bool | None = None,
    point: str | None = None,
    folder: str | os.PathLike | None = None,
) -> Calibration | None:
    """
    The calibration of a model; None where it has none.

    Args:
        source: a folder, file or repository that holds one, or itself; None for the model's own; False or `"none"` for none.
        point: operating point instead of its own.
        folder: the model's folder or repository; where it was loaded from if None.

    Raises:
        ValueError: it was made of other weights or another preprocessing, is damaged, or has no such operating point.
        FileNotFoundError: there is none where `source` says, or none although an operating point is asked for.
    """
    if source is False or source == "none":
        return None
    if isinstance(source, Calibration):
        return source.check(model, processor, "the calibration").with_point(point)
    stated = source is not None and source is not True
    place = str(source if stated else folder or model.config.name_or_path or "")
    path = find_calibration(place, model)
    if path is not None:
        return Calibration.read(path).check(model, processor, path).with_point(point)
    if stated or point is not None:
        raise FileNotFoundError(f"there is no calibration at {place}: make one with `itemized-clip calibrate`.")
    return None


def find_calibration(name: str, model: PreTrainedModel | None = None) -> Path | None:
    """The `calibration.json` of a folder, file or repository of the Hub; None where there is none."""
    if not name or name.startswith(UNTRAINED):
        return None
    path = Path(name)
    if path.exists():
        path = path / FILE if path.is_dir() else path
        return path if path.exists() else None
    if path.suffix == ".json":
        return None
    name, revision = split_revision(name)
    revision = revision or getattr(getattr(model, "config", None), "_commit_hash", None)
    optional: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    try:
        found = cached_file(name, FILE, revision=revision or "main", **optional)
        if found is not None:
            cached_file(name, CLOUD, revision=revision or "main", **optional)
    except (OSError, ValueError):  # a name that is neither a folder nor a repository
        return None
    return None if found is None else Path(found)


_HASHES: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()


def hash_weights(model: PreTrainedModel) -> str:
    """`hash_model`, made again where a tensor of the model has changed or is another one."""
    try:
        tensors = [(value.data_ptr(), value._version, value.dtype) for value in model.state_dict().values()]
        key = tensors, getattr(model.config, "to_json_string", str)()
    except (RuntimeError, AttributeError):  # tensors of inference mode count no changes
        return hash_model(model)
    known = _HASHES.get(model)
    if known is None or known[0] != key:
        _HASHES[model] = known = key, hash_model(model)
    return known[1]


def far_note(study: str, percentile: float) -> str | None:
    """A warning where a study lies farther from the validation studies than 99 % of these do."""
    if percentile < FAR_PERCENTILE:
        return None
    return (
        f"{study}: it lies farther from the studies of the calibration than {percentile:.0f} % of these do; its "
        "probabilities may mean nothing."
    )


def _write_cloud(distance: Distance, path: Path) -> str:
    from safetensors.torch import save_file

    parts = {"mean": distance.mean, "precision": distance.precision}
    with whole_file(path) as temporary:
        save_file({name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}, temporary)
    return hash_file(path)


def _read_cloud(path: Path, stated: Mapping[str, Any] | None) -> Distance | None:
    if stated is None:
        return None
    from safetensors.numpy import load_file

    file = path.with_name(CLOUD)
    if not file.exists() or hash_file(file) != stated["sha256"]:
        raise ValueError(f"{CLOUD} beside it is missing or another one")
    parts = load_file(file)
    percentiles, size = np.array(stated["percentiles"], dtype=float), parts["mean"].size
    shapes = parts["mean"].shape, parts["precision"].shape, percentiles.shape
    if shapes != ((size,), (size, size), (101,)) or not np.isfinite(percentiles).all():
        raise ValueError(f"mean, precision and percentiles have the shapes {shapes}")
    return Distance(parts["mean"], parts["precision"], percentiles, int(stated["studies"]))
