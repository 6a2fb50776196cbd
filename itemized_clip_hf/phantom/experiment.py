"""The demo's experiment: a model that learns from generated studies (recipe `phantom`), scored and explained on unseen ones."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..bars import without_library_bars
from ..data.study import Scan
from ..evaluation.encode import EncodedStudies, encode_studies, encode_texts
from ..evaluation.grounding import PointingGame
from ..evaluation.metrics import auroc
from ..evaluation.zero_shot import encode_prompts, score_encoded
from ..explain.maps import attend, explain_study, relate_to_mean, source_to_token, touched_tokens, write_map
from ..explain.plots import plot_item, slug
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel
from ..models.load import pick_device
from ..processing.geometry_itemized_clip import permutation
from ..processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from ..processing.processing_itemized_clip import ItemizedCLIPProcessor
from ..recipes import load_recipe
from ..trainer.from_recipe import build_arguments, build_model, build_processor
from ..trainer.trainer import ItemizedCLIPTrainer
from .dataset import PhantomDataset
from .nifti import describe_study, write_study
from .reports import ZERO_SHOT_PROMPTS
from .study import DEFAULT_SHAPE, PhantomStudy

RECIPE = "phantom"
SCAN_SIZE = DEFAULT_SHAPE
DRAWN_STUDIES = 3
MIN_STUDIES_FOR_WORKERS = 200


@dataclass(frozen=True)
class FindingResult:
    """
    How well one finding is found.

    Args:
        prompt: that it was scored by.
        positive: studies that have it.
        auc: zero-shot, 0 to 1.
        localised: whether it lies at one place.
        pointing: share of the items whose hottest patch touches the finding; `chance` that of a patch drawn at random.
    """

    prompt: str
    positive: int
    auc: float
    localised: bool
    pointing: float
    chance: float


@dataclass(frozen=True)
class ExperimentResults:
    """Results of `evaluate_phantom`; `pointing` and `chance` are of the findings that lie at one place."""

    studies: int
    findings: dict[str, FindingResult]
    mean_auc: float
    pointing: float
    chance: float

    def to_dict(self) -> dict[str, Any]:
        """As `results.json` of the demo holds them."""
        return asdict(self)


def train_phantom(
    folder: str | Path,
    seed: int = 0,
    steps: int | None = None,
    studies: int = 3000,
    device: str = "auto",
    variant: str | None = None,
    **changes: Any,
) -> tuple[ItemizedCLIPModel, ItemizedCLIPProcessor]:
    """
    Model and processor, learned from generated studies and saved in `folder/model`.

    Args:
        steps: of the optimizer; the recipe's if None.
        studies: that are generated, in the size of the recipe's scans.
        device: `"auto"`, `"cpu"` or a GPU's name.
        variant: of the recipe; `"coarse"` has scans of `COARSE_SHAPE` and learns in a fraction of the time.
        changes: to the training arguments; `objective_weights` are added to the recipe's.
    """
    folder = Path(folder)
    recipe = load_recipe(RECIPE)
    recipe = recipe if variant is None else recipe.variant(variant)
    dataset = PhantomDataset("train", studies, seed=seed, shape=tuple(recipe.image["scan_size"]))
    rows = generate_examples(dataset, ItemizedCLIPImageProcessor.from_domain(recipe.domain, **recipe.image))
    processor = build_processor(recipe, (row["items"] for row in rows))
    model = build_model(recipe, processor.tokenizer, seed)
    if steps is not None:
        changes["max_steps"] = steps
    changes["objective_weights"] = {**recipe.training["objective_weights"], **changes.get("objective_weights", {})}
    changes = {"seed": seed, "use_cpu": pick_device(device).type == "cpu", **changes}
    arguments = build_arguments(recipe, folder / "trainer", changes)
    ItemizedCLIPTrainer(model, arguments, train_dataset=rows, processing_class=processor).train()
    model.eval()
    with without_library_bars():
        model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return model, processor


def as_scans(study: PhantomStudy) -> dict[str, Scan]:
    """Scans of a generated study with their geometry, as from files."""
    depth_first = study.affine @ permutation((2, 1, 0))
    return {name: Scan(scan, depth_first, name) for name, scan in study.scans.items()}


def as_example(study: PhantomStudy, image_processor: ItemizedCLIPImageProcessor) -> dict[str, Any]:
    """A generated study as the collator takes it, its scans processed and in half precision."""
    scans = image_processor.process_study(as_scans(study))
    return {
        "id": study.id,
        "pixel_values": torch.stack([scan.pixel_values for scan in scans]).half(),
        "scan_names": list(study.scans),
        "items": study.items,
        "is_normal": study.is_normal,
    }


@dataclass(frozen=True)
class PhantomExamples(Dataset[dict[str, Any]]):
    """The studies of a dataset, each generated and processed when it is asked for."""

    studies: PhantomDataset
    image_processor: ItemizedCLIPImageProcessor

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return as_example(self.studies[index], self.image_processor)


def generate_examples(dataset: PhantomDataset, image_processor: ItemizedCLIPImageProcessor) -> list[dict[str, Any]]:
    """All studies as the collator takes them, in their order; generated by as many processes as there are cores."""
    forks = multiprocessing.get_start_method() == "fork" and len(dataset) >= MIN_STUDIES_FOR_WORKERS
    workers = min(os.cpu_count() or 1, 8) if forks else 0
    loader = DataLoader(PhantomExamples(dataset, image_processor), batch_size=None, num_workers=workers)
    rows = []
    for row in tqdm(loader, desc="generating", unit="study"):
        row["pixel_values"] = row["pixel_values"].clone()  # out of the memory that processes share, which is little
        rows.append(row)
    return rows


def evaluate_phantom(
    model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, test: Iterable[PhantomStudy], folder: str | Path
) -> ExperimentResults:
    """
    Zero-shot AUC of every finding and pointing game of every item.

    Heat maps of a few studies, and these studies as files, are written to `folder`.
    """
    studies, folder = list(test), Path(folder)
    labels, prompts = encode_prompts(model, processor, ZERO_SHOT_PROMPTS)
    scores, game = np.zeros((len(studies), len(labels))), PointingGame()
    for encoded in encode_studies(model, processor, [as_scans(study) for study in studies], progress="scoring"):
        scores[encoded.numbers] = score_encoded(model, prompts, encoded)
        for row, number in enumerate(encoded.numbers):
            play_pointing_game(model, processor, studies[number], encoded, row, game)
    draw_studies(model, processor, [study for study in studies if len(study.items) >= 2][:DRAWN_STUDIES], folder)
    localised = {
        finding for study in studies for finding, words in zip(study.item_findings, study.attributes) if "lobe" in words
    }
    findings = {}
    for column, label in enumerate(labels):
        truth = np.array([study.labels[label] for study in studies])
        _, hit, chance = game.rates([label])
        auc = auroc(truth, scores[:, column])
        prompt = ZERO_SHOT_PROMPTS[label]
        findings[label] = FindingResult(prompt, int(truth.sum()), auc, label in localised, hit, chance)
    _, hit, chance = game.rates(localised)
    mean_auc = float(np.mean([finding.auc for finding in findings.values()]))
    return ExperimentResults(len(studies), findings, mean_auc, hit, chance)


@dataclass(frozen=True)
class TokenMap:
    """Attention of an item over the tokens (D, H, W) of a scan, and the transform (4, 4) of its voxel indices to theirs."""

    tokens: np.ndarray
    voxel_to_token: np.ndarray

    def touched_tokens(self, mask: np.ndarray) -> np.ndarray:
        """Tokens (D, H, W) that hold at least one voxel of a mask in the source's grid."""
        return touched_tokens(mask, self.voxel_to_token, self.tokens.shape)


def play_pointing_game(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    study: PhantomStudy,
    encoded: EncodedStudies,
    row: int,
    game: PointingGame,
) -> None:
    """Adds the items of one of the encoded studies, which has the number `row` among them, to the game."""
    if study.is_normal:
        return
    keep, scans = encoded.keep_mask, encoded.scans[row]
    items = encode_texts(model, processor, study.items)[None]
    with torch.no_grad():
        attention = attend(model, items, encoded.tokens[row, None], None if keep is None else keep[row, None])[0]
    scan_size = tuple(scans[0].pixel_values.shape[1:])
    grid = tuple(voxels // size for voxels, size in zip(scan_size, model.config.vision.patch_shape))
    transforms = [source_to_token(scan.to_source, scan_size, grid) for scan in scans]
    for finding, mask, tokens in zip(study.item_findings, study.masks, relate_to_mean(attention, len(scans), grid)[0]):
        assert mask is not None, "only the sentence of a normal study has no mask"
        game.add(finding, [TokenMap(*pair) for pair in zip(tokens, transforms)], [mask] * len(scans))


def draw_studies(
    model: ItemizedCLIPModel, processor: ItemizedCLIPProcessor, studies: list[PhantomStudy], folder: Path
) -> None:
    """Heat maps of some studies, and the studies as files."""
    for study in studies:
        maps = explain_study(model, processor, as_scans(study), study.items)
        per_item = len(study.scans)
        by_item = [maps[start : start + per_item] for start in range(0, len(maps), per_item)]
        draw_maps(study, by_item, folder / "heat-maps" / study.id)
    write_drawn_studies(studies, folder)


def draw_maps(study: PhantomStudy, maps_of_items: list[list[Any]], folder: Path) -> None:
    """Heat maps of every item as pictures, with the finding's outline, and as NIfTI files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (finding, mask, heat_maps) in enumerate(zip(study.item_findings, study.masks, maps_of_items)):
        plot_item(heat_maps, folder / f"{number}_{slug(study.items[number])}.png", [mask] * len(heat_maps))
        for heat_map in heat_maps:
            write_map(folder / f"{number}_{slug(finding)}__{heat_map.scan_name}.nii.gz", heat_map)


def write_drawn_studies(studies: list[PhantomStudy], folder: Path) -> None:
    """Studies as NIfTI with masks, a list of them, and the scans of the first in `study`, which the README uses."""
    lines = []
    for study in studies:
        files = write_study(study, folder / "studies" / study.id)
        lines.append(json.dumps(describe_study(study, files, f"studies/{study.id}")) + "\n")
        if study is studies[0]:
            (folder / "study").mkdir(parents=True, exist_ok=True)
            for file in files.values():
                shutil.copyfile(folder / "studies" / study.id / file, folder / "study" / file)
    (folder / "studies.jsonl").write_text("".join(lines), encoding="utf-8")
