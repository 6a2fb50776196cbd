"""Few-shot curves: zero-shot, linear probe, head and LoRA by the number of training studies, with repeats."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers.utils import logging

from ...data.files import whole_file, write_text
from ...data.studies.training_ids import ids_of
from ...data.tables import write_csv
from ...evaluation.encode import Closed
from ...evaluation.few_shot import ALL, FewShotRun, order_of, plot_few_shot, tabulate
from ...evaluation.label_scores import mean_figures, summarize_labels
from ...evaluation.linear_probe import extract_features, probe_scores
from ...evaluation.metrics import require_sklearn
from ...evaluation.results import TableResult
from ...evaluation.text_table import null_for_nan
from ...explain.figures import new_figure
from ...models.adapters import require_peft
from ...provenance import hash_json, hash_model
from ..interrupts import Interrupts, TrainingInterruptedError
from ..output_folder import held
from ..run_record import RunRecord
from ..sampler import skipped_study
from .classification import (
    ClassificationOptions,
    ClassificationParts,
    build_trainer,
    describe_run,
    predict_logits,
    read_parts,
)
from .labels import LabeledStudies
from .run import supervised_arguments
from .trainer import SupervisedTrainer

logger = logging.get_logger(__name__)

RUNS, TABLE, RESULTS, PLOT = "few_shot.jsonl", "few_shot.csv", "few_shot.json", "few_shot.png"
TRAINED = ("head", "LoRA")
_OF_THE_CURVE = (
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps", "load_best_model_at_end", "metric_for_best_model"),
    *("freeze_vision", "freeze_text"),
)


def few_shot_curve(
    options: ClassificationOptions,
    settings: dict[str, Any],
    shots: Sequence[int | str],
    repeats: int = 3,
    resume: bool = False,
    interrupts: Interrupts | None = None,
    record: RunRecord | None = None,
) -> dict[str, Any]:
    """
    Trains on few studies by each method and evaluates on `options.eval_data`; no model is kept.

    `head` trains all but the vision tower, `LoRA` adapters of it besides (those of the setting `lora`, else `"vision"`). There
    is no early stopping, which would look at the test studies.

    Args:
        settings: training arguments of `head` and `LoRA`.
        shots: numbers k, or `"all"`: training has the first k studies with each label and the first k without it, in an order
            that is drawn for each repeat, so that more shots hold the fewer; a study serves all labels. Of classes the first k.
        repeats: draws for each number of shots.
        resume: go on with the runs that are not in `few_shot.jsonl` yet.

    Returns:
        what `few_shot.json` holds; the table is `few_shot.csv`, the plot `few_shot.png`.

    Raises:
        ValueError: what cannot work.
        TrainingInterruptedError: a signal ended it; finished runs are kept.
    """
    args = curve_arguments(options, settings)
    require_tools()
    folder = Path(options.output)
    if not resume and (folder / RUNS).exists():
        raise ValueError(
            f"{folder} holds a curve already: pass --resume to go on with it, or choose another output folder."
        )
    parts = read_parts(options)
    parts.processor.image_processor.accept = args.get("accept") or ()
    studies = [ids_of(data) for data in (parts.train_data, parts.eval_data)]
    decisive = {name: value for name, value in args.items() if name != "use_cpu"}
    begun = hash_json([describe_run(parts, options), hash_model(parts.model), decisive, studies])
    with interrupts.listening() if interrupts is not None else nullcontext(), held(folder, resume):
        if record is not None:
            record.write(folder)
        curve = Curve(parts, options, args, folder, interrupts)
        done = read_runs(folder / RUNS, begun)
        whole_lines = [as_line(run, begun) for run in done]  # without one that was not written to its end
        write_text(folder / RUNS, "".join(whole_lines))
        planned = [(k, repeat) for k in shots for repeat in range(repeats)]
        for k, repeat in planned:
            for run in curve.runs(k, repeat, [run.method for run in done if (run.shots, run.repeat) == (k, repeat)]):
                done.append(run)
                with (folder / RUNS).open("a", encoding="utf-8") as file:
                    file.write(as_line(run, begun))
                logger.warning(
                    f"{run.method}, {k} shots, repeat {repeat + 1}: AUC {run.figures.get('auc', math.nan):.4f}"
                )
        chosen = [run for run in done if (run.shots, run.repeat) in planned]
        return write_curve(folder, chosen, curve.zero_shot(), describe_run(parts, options))


def curve_arguments(options: ClassificationOptions, settings: dict[str, Any]) -> dict[str, Any]:
    """
    Training arguments of all runs, apart from what the curve itself decides.

    Raises:
        ValueError: an option or argument has no place in a curve.
    """
    if options.eval_data is None:
        raise ValueError("--shots needs studies to test on: pass --eval-data.")
    if options.head != "items" or options.patience is not None:
        raise ValueError(
            "--shots compares methods of its own, without early stopping: leave out --head and --patience."
        )
    stated = [name for name in _OF_THE_CURVE if name in settings]
    if stated:
        raise ValueError(f"a few-shot curve decides {stated} by itself: leave them out.")
    fixed = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    merged = {**settings, **{name: value for name, value in fixed.items() if name not in settings}}
    supervised_arguments(options.output, merged)
    return merged


def require_tools() -> None:
    """Raises an ImportError that names the extra where scikit-learn, peft or matplotlib is missing."""
    require_peft()
    new_figure(1, 1)
    require_sklearn()


class Curve:
    """The methods on the studies of a curve; what several runs need is made once."""

    def __init__(
        self,
        parts: ClassificationParts,
        options: ClassificationOptions,
        args: dict[str, Any],
        folder: Path,
        interrupts: Interrupts | None,
    ):
        self.parts, self.options, self.args, self.folder, self.interrupts = parts, options, args, folder, interrupts
        self.test = cast(LabeledStudies, parts.eval_data)
        self.seed = int(args.get("seed", 0))
        self._train_features = np.full((len(parts.train_data), 0), np.nan)
        self._test_features: np.ndarray | None = None

    def runs(self, shots: int | str, repeat: int, done: Sequence[str] = ()) -> Iterator[FewShotRun]:
        """Every method that is not done, by one draw of training studies."""
        rows = draw_shots(self.parts.labels.table, shots, (self.seed, repeat))
        for method in ("linear probe", *TRAINED):
            if method in done:
                continue
            logits = self.probe(rows, repeat) if method == "linear probe" else self.train(method, rows, repeat)
            results = self.summarize(logits, resamples=0)
            auc = {name: row.estimates.get("auc") for name, row in (results["labels"].findings or {}).items()}
            labels = {name: None if one is None else one.value for name, one in auc.items()}
            yield FewShotRun(method, shots, repeat, len(rows), mean_figures(results), labels)

    def summarize(self, logits: np.ndarray, **settings: Any) -> dict[str, TableResult]:
        """Figures on the test studies, those that could not be read left out."""
        usable = ~np.isnan(logits).any(1)
        return summarize_labels(self.parts.labels.names, logits[usable], self.test.labels[usable], **settings)

    def zero_shot(self) -> dict[str, TableResult]:
        """Figures of the fresh classifier, with intervals over the test studies."""
        with self.trainer(np.arange(0), {}) as trainer:
            return self.summarize(predict_logits(trainer, self.test))

    def train(self, method: str, rows: np.ndarray, repeat: int) -> np.ndarray:
        """Logits of the test studies after training on some rows."""
        own = {"lora": self.args.get("lora") or "vision"} if method == "LoRA" else {"freeze_vision": True, "lora": None}
        with self.trainer(rows, {**own, "seed": self.seed + repeat}) as trainer:
            if self.interrupts is not None:
                trainer.add_callback(self.interrupts)
            trainer.train()
            if self.interrupts is not None and self.interrupts.number is not None:
                raise TrainingInterruptedError(
                    self.interrupts.number,
                    f"The curve was ended; finished runs are in {self.folder / RUNS}. To go on, add --resume to the command.",
                )
            return predict_logits(trainer, self.test)

    @contextmanager
    def trainer(self, rows: np.ndarray, changes: dict[str, Any]) -> Iterator[SupervisedTrainer]:
        """A Trainer of a fresh classifier, whose folder is there inside the context only."""
        with tempfile.TemporaryDirectory(prefix=".run-", dir=self.folder) as place:
            args = supervised_arguments(place, {**self.args, **changes})
            trainer = build_trainer(self.parts, self.options, args, self.parts.train_data.choose(rows))
            cast(Any, trainer.data_collator).quarantine = self.folder / "quarantine.csv"
            yield trainer

    def probe(self, rows: np.ndarray, repeat: int) -> np.ndarray:
        """Scores of the test studies by logistic regression on the frozen tower's features."""
        if self._test_features is None:
            self._test_features = self.features(self.test)
            self._train_features = np.full((len(self.parts.train_data), self._test_features.shape[1]), np.nan)
        new = [row for row in rows if np.isnan(self._train_features[row]).all()]
        if new:
            self._train_features[new] = self.features(self.parts.train_data.choose(new))
        table = self.parts.labels.table
        if table.ndim == 1:
            table = np.eye(len(self.parts.labels.names))[table]
        return probe_scores(self._train_features[rows], table[rows], self._test_features, seed=self.seed + repeat)

    def features(self, studies: LabeledStudies) -> np.ndarray:
        """Features (S, 2 P) of the frozen tower, NaN for studies that cannot be read, which are listed in the quarantine."""
        collator = self.parts.collator(supervised_arguments(self.folder, self.args))

        def report(number: int, error: Exception) -> None:
            collator.report(skipped_study(studies.id_of(number), error))

        closed = [Closed(partial(lambda number: studies[number]["images"], number)) for number in range(len(studies))]
        return extract_features(self.parts.model, self.parts.processor, closed, on_error=report)


def draw_shots(table: np.ndarray, shots: int | str, seed: tuple[int, int]) -> np.ndarray:
    """
    Rows of the studies that are trained on, see `few_shot_curve`.

    >>> table = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> rows = draw_shots(table, 1, (0, 0))
    >>> [sorted(set(table[rows, label].tolist())) for label in (0, 1)]
    [[0.0, 1.0], [0.0, 1.0]]
    >>> draw_shots(table, "all", (0, 0)).tolist()
    [0, 1, 2, 3]
    """
    if shots == ALL:
        return np.arange(len(table))
    order = np.random.default_rng(seed).permutation(len(table))
    columns = [table == value for value in np.unique(table)] if table.ndim == 1 else []
    if table.ndim == 2:
        columns = [column == value for column in table.T for value in (1, 0)]
    chosen = [order[column[order]][: int(shots)] for column in columns]
    return np.unique(np.concatenate(chosen))


def as_line(run: FewShotRun, begun: str) -> str:
    """A run as `few_shot.jsonl` holds it, with the hash of what the curve was begun with."""
    return json.dumps({"begun": begun, **null_for_nan(asdict(run))}) + "\n"


def read_runs(path: Path, begun: str) -> list[FewShotRun]:
    """
    Runs that are done; a line that was not written to its end is passed over.

    Raises:
        ValueError: the curve was begun with another model, other labels or other settings.
    """
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if content.pop("begun") != begun:
            raise ValueError(
                f"{path} was begun with another model, other studies or other settings: repeat these with --resume, or choose "
                "another output folder."
            )
        content["figures"] = {name: math.nan if v is None else v for name, v in content["figures"].items()}
        runs.append(FewShotRun(**content))
    return runs


def write_curve(
    folder: Path, runs: list[FewShotRun], zero_shot: dict[str, TableResult], facts: dict[str, Any]
) -> dict[str, Any]:
    """Table, plot and all figures of a curve."""
    rows = tabulate(runs, zero_shot["labels"].mean)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(folder / TABLE) as temporary:
        write_csv(temporary, [columns, *([row.get(name, "") for name in columns] for row in rows)])
    labels = facts["labels"]
    plot_few_shot(rows, folder / PLOT, f"{len(labels)} labels, {zero_shot['labels'].studies} test studies")
    intervals = {
        "zero-shot": "95 %, bootstrap over the test studies",
        "others": "95 %, Student's t over the repeats (draws of training studies and seeds)",
    }
    results = {
        **facts,
        "intervals": intervals,
        "table": rows,
        "zero_shot": {name: result.to_dict() for name, result in zero_shot.items()},
        "runs": [asdict(run) for run in sorted(runs, key=order_of)],
    }
    write_text(folder / RESULTS, json.dumps(null_for_nan(results), indent=1) + "\n")
    return results
