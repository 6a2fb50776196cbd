"""
Model cards: facts in YAML -> metadata and text that the Hub understands.

What a person has to say (licence, data, population) stays empty until somebody says it, and the card says that it is empty.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..domains import Domain, load_domain
from ..domains.schema import check_image_settings
from ..evaluation.estimates import unit_of
from ..evaluation.results import Measured, measured_figures, read_result
from ..modeling.configuration_itemized_clip import SCORINGS
from ..provenance import hash_text
from ..specs import build, check_section, read_json, read_text, read_written, write_yaml
from .card_text import clean_name, escape, escape_line

FACTS, CARD = "card.yaml", "README.md"
UNKNOWN_LICENSE = "unknown"
PIPELINES = {True: "zero-shot-image-classification", False: "zero-shot-study-classification"}
CLASSIFIES, DRAWS = "image-classification", "image-segmentation"
HEADS = {"ItemizedCLIPForImageClassification": CLASSIFIES, "ItemizedCLIPForSemanticSegmentation": DRAWS}
"""Architecture of a config -> what the model does besides, or instead of, scoring texts, in the Hub's words."""

_TEMPLATE = Path(__file__).with_name("card_template.md")
_PAPER = {"benchmark": str, "metric": str, "value": float, "source": str, "comparison": str}
_MEASURED = {
    **{name: str for name in ("benchmark", "dataset", "table", "metric", "data_sha256")},
    **{"studies": int | None, "value": float, "low": float, "high": float},
}
_TEXT = {"context_length": int, "lowercase": bool, "tokenizer": str}


@dataclass
class CardFacts:
    """
    What a card is made of; a folder keeps it in `card.yaml`.

    Args:
        name: of the repository, `ORG/NAME`.
        domain: whose preprocessing and prompts belong to the model.
        title, summary: for the head of the card; from the domain if empty.
        license: the Hub's identifier of the weights' licence; None until somebody states it. `other` needs `license_name` and
            `license_link`.
        license_note: what limits the licence, e.g. that of weights it was trained from.
        base_models: Hub names of the weights that it was trained from.
        training_data, access, population: what it was trained on, who can get that, and whom it shows.
        training: name -> value of the procedure.
        paper: figures that the paper reports, `{"benchmark", "metric", "value", "source"}` and, for others, `comparison`.
        measured: figures of `itemized-clip evaluate`, from `measured_figures`.
        converted: source hash, parity and versions of a converted checkpoint.
        intended_use, out_of_scope, limits: sentences that are added to those that hold for every model.
        citation: BibTeX.
        data_terms: what the licence of the data asks for.
        image, text: settings of its processor where they differ from the domain's.
        scoring: `items` or `global`, as in the model's config.
        head: `image-classification` or `image-segmentation`, as the architecture of the config says; empty without one.
        labels: of a classifier, or of a model that draws classes.
        calibration: `describe_calibration` of its folder's calibration.json; empty without one.
        rendered: hash of the card that was last made of these facts: another one has been edited by hand.

    >>> facts = CardFacts(name="org/my-model", domain="head-ct", license="cc-by-nc-4.0")
    >>> "Weights: cc-by-nc-4.0." in card_text(facts)
    True
    """

    name: str
    domain: str
    title: str = ""
    summary: str = ""
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    license_note: str = ""
    base_models: list[str] = field(default_factory=list)
    training_data: str = ""
    access: str = ""
    population: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    paper: list[dict[str, Any]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    converted: dict[str, Any] = field(default_factory=dict)
    intended_use: list[str] = field(default_factory=list)
    out_of_scope: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    citation: str = ""
    data_terms: str = ""
    image: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    scoring: str = "items"
    head: str = ""
    labels: list[str] = field(default_factory=list)
    calibration: dict[str, Any] = field(default_factory=dict)
    rendered: str = ""

    @classmethod
    def read(cls, path: str | Path) -> "CardFacts":
        """
        From a YAML file.

        Raises:
            ValueError: unknown or missing keys, or a value that is no fact of a card.
        """
        content = read_written(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds no facts of a card: expected keys such as name and domain.")
        facts = build(cls, {name: value for name, value in content.items() if value is not None}, str(path))
        facts.check(str(path))
        return facts

    def check(self, where: str) -> None:
        """Raises a ValueError where a value is none that a card can show."""
        if not self.name.strip() or len(self.name) > 200 or not self.name.isprintable():
            raise ValueError(f"{where}: name is {self.name[:80]!r}, expected ORG/NAME.")
        load_domain(self.domain)
        for part, kinds, needed in (("paper", _PAPER, ("source",)), ("measured", _MEASURED, ())):
            for number, row in enumerate(getattr(self, part)):
                check_section(row, kinds, f"{where}: {part}[{number}]", ("benchmark", "metric", "value", *needed))
        check_image_settings({**load_domain(self.domain).image, **self.image}, f"{where}: image")
        check_section(self.text, _TEXT, f"{where}: text")
        if self.scoring not in SCORINGS:
            raise ValueError(f"{where}: scoring is {self.scoring!r}, expected one of {list(SCORINGS)}.")
        if self.head not in ("", *HEADS.values()):
            raise ValueError(f"{where}: head is {self.head!r}, expected one of {list(HEADS.values())}, or nothing.")

    def write(self, path: str | Path) -> None:
        """Writes the facts that are stated as YAML."""
        kept = {name: value for name, value in asdict(self).items() if value not in ("", [], {})}
        Path(path).write_text(write_yaml(kept), encoding="utf-8")


def facts_of_folder(folder: str | os.PathLike, name: str | None = None) -> CardFacts:
    """
    Facts of a model folder: those of its `card.yaml`, and what its configs and its conversion report say.

    Args:
        name: of the repository; needed where `card.yaml` has none.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    if (folder / FACTS).exists():
        facts = CardFacts.read(folder / FACTS)
    else:
        domain = config.get("domain")
        if domain is None:
            raise ValueError(
                f"{folder} does not say which domain it belongs to: write {FACTS} with `name` and `domain`, see the cards in "
                "hub_cards/."
            )
        facts = CardFacts(name=name or folder.resolve().name, domain=domain)
    facts.name = name or facts.name
    facts.scoring = config.get("scoring", facts.scoring)
    facts.head = HEADS.get((config.get("architectures") or [""])[0], "")
    facts.labels = labels_of_config(config) if facts.head else []
    processor = _read_json(folder / "processor_config.json").get("image_processor", {})
    own = load_domain(facts.domain).image
    facts.image = {k: processor[k] for k in own if k in processor and _as_json(processor[k]) != _as_json(own[k])}
    facts.text = text_of_folder(folder, config, load_domain(facts.domain).text)
    facts.calibration = {}
    if (folder / "calibration.json").exists():
        from .calibration_facts import calibration_of_folder  # loads the model

        facts.calibration = calibration_of_folder(folder)
    report = _read_json(folder / "conversion_report.json")
    if report:
        facts.converted = {
            "file_sha256": report["source"]["sha256"],
            "tensors": len(report["keys"]),
            "largest difference of a similarity": f"{report['parity']['similarity']:.0e}",
            "vocabulary confirmed": report["vocabulary"]["confirmed"],
            "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        }
    return facts


def labels_of_config(config: Mapping[str, Any]) -> list[str]:
    """Names that a head gives its outputs, without the background of a model that draws classes; none where it takes texts."""
    decoder = config.get("mask_decoder") or {}
    named = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    if decoder.get("mode", "classes") != "classes":
        return []
    return [named[number] for number in sorted(named) if number or not decoder]


def text_of_folder(folder: Path, config: dict, domain: Mapping[str, Any]) -> dict[str, Any]:
    """Context and vocabulary of a folder's tokenizer, where they are not the domain's."""
    found = {}
    context = _read_json(folder / "tokenizer_config.json").get("model_max_length")
    if context not in (None, domain["context_length"]):
        found["context_length"] = context
    entries = config.get("text_config", {}).get("vocab_size")
    if entries not in (None, domain["vocabulary"]["size"]):
        found["tokenizer"] = f"a vocabulary of its own ({entries:,} entries)"
    return found


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _read_json(path: Path) -> dict:
    return read_json(path, dict, 64 << 20) if path.exists() else {}


def render(facts: CardFacts) -> ModelCard:
    """The card; the same facts give the same bytes."""
    domain = load_domain(facts.domain)
    picture = domain.image["scan_size"][0] == 1
    contract = input_contract({**domain.image, **facts.image}, {**domain.text, **facts.text})
    return ModelCard.from_template(
        metadata(facts, domain),
        template_path=str(_TEMPLATE),
        facts=escape(facts),
        domain=domain,
        picture=picture,
        contract=[row for row in contract if facts.head != CLASSIFIES or row[0] != "Text"],
        paper=escape([{**row, "shown": f"{row['value']}"} for row in facts.paper]),
        calibration=escape(facts.calibration),
        measured=escape([{**row, "shown": Measured.from_dict(row).estimate.format(" to ")} for row in facts.measured]),
        prompts={label: prompts[0] for label, prompts in list(domain.prompts.items())[:2]},
        snippet=snippet(facts, domain),
        license=escape_line(facts.license or UNKNOWN_LICENSE),
    )


def metadata(facts: CardFacts, domain: Domain) -> ModelCardData:
    """YAML header: library, task, licence, base models, tags and the `model-index` of all figures."""
    kind = [CLASSIFIES] if facts.head == CLASSIFIES else ["zero-shot", "vision-language", *filter(None, [facts.head])]
    tags = ["itemized_clip", *kind, facts.domain]
    if domain.modality is not None:
        tags += ["medical", "radiology", "3d", "not-a-medical-device"]
    results = [_eval_result(_reported(row), " (reported by the paper)") for row in facts.paper]
    results += [_eval_result(Measured.from_dict(row), "") for row in facts.measured]
    about: dict[str, Any] = {"base_model": facts.base_models} if facts.base_models else {}
    if facts.license_name:
        about |= {"license_name": facts.license_name, "license_link": facts.license_link}
    # The widget of this task sends one picture, which a model of volumes cannot take; the Hub has no task of its own for them.
    if domain.image["scan_size"][0] == 1:
        about["pipeline_tag"] = CLASSIFIES if facts.head == CLASSIFIES else PIPELINES[True]
    return ModelCardData(
        language="en",
        license=facts.license or UNKNOWN_LICENSE,
        library_name="transformers",
        tags=tags,
        model_name=facts.name.rpartition("/")[2],
        eval_results=results or None,
        **about,
    )


def _eval_result(row: Measured, remark: str) -> EvalResult:
    return EvalResult(
        dataset_config=row.table or None,
        task_type="zero-shot-image-classification",
        task_name="zero-shot scores of items",
        dataset_type=row.dataset or "".join(c if c.isalnum() else "-" for c in row.benchmark.lower()),
        dataset_name=row.benchmark,
        metric_type=row.metric,
        metric_name=f"{row.metric}{remark}",
        metric_value=row.estimate.value,
    )


def _reported(row: Mapping[str, Any]) -> Measured:
    """A figure of the paper, which prints shares in percent."""
    is_share = unit_of(row["metric"]) == "share"
    value = round(row["value"] / 100, 4) if is_share else row["value"]
    return Measured.from_dict({**row, "value": value})


def input_contract(image: Mapping[str, Any], text: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the model expects of an image, name -> value; the processor of the folder does it."""
    depth, height, width = image["scan_size"]
    rows = []
    if depth == 1:
        rows.append(("Image", f"{image['num_channels']} channels (RGB), 8 bits"))
        rows.append(("Size", f"shortest side to {min(height, width)} px (bicubic), centre crop {height} x {width} px"))
    else:
        study = "several scans, each with its sequence name" if image["multi_scan"] else "one scan"
        rows.append(("Study", study))
        stored = "as stored, (z, y, x)" if image.get("orientation") is None else f"brought to {image['orientation']}"
        rows.append(("Orientation", f"{stored}; files without geometry are taken as they are, depth first"))
        if image.get("spacing"):
            rows.append(
                ("Spacing", f"resampled to {' x '.join(f'{s:g}' for s in image['spacing'])} mm (depth, height, width)")
            )
        else:
            rows.append(("Spacing", "not resampled; every scan is fitted to the size below"))
        if image.get("windows"):
            windows = ", ".join(
                f"{name or 'window'} {low} to {high} HU" for name, (low, high) in dict(image["windows"]).items()
            )
            rows.append(("Intensity", f"Hounsfield units; {windows}, each to [0, 1]"))
        else:
            low, high = image["percentiles"]
            rows.append(("Intensity", f"raw magnitudes; percentiles {low:g} and {high:g} of a volume become 0 and 1"))
        rows.append(("Size", f"{depth} x {height} x {width} voxels (depth, height, width)"))
    mean, std = (", ".join(f"{v:g}" for v in image[name]) for name in ("image_mean", "image_std"))
    rows.append(("Normalisation", f"mean {mean}; standard deviation {std}"))
    lower = ", lower-cased" if text["lowercase"] else ""
    rows.append(("Text", f"one item at a time, at most {text['context_length']} tokens{lower}; {text['tokenizer']}"))
    return rows


_PICTURE, _STUDY = '"picture.jpg"', '"study.nii.gz"'


def snippet(facts: CardFacts, domain: Domain) -> str:
    """Python that scores two prompts; tests run it."""
    labels = [prompts[0] for prompts in domain.prompts.values()][:2] or ["a dog", "a red car"]
    picture = domain.image["scan_size"][0] == 1
    name = json.dumps(clean_name(facts.name))
    is_classifier = facts.head == CLASSIFIES
    asked = "" if is_classifier else f", candidate_labels={json.dumps(labels)}"
    unit = "not calibrated" if is_classifier else "cosine similarity, each label by itself"
    lines = [
        "import itemized_clip_hf  # installed from a clone of its repository: pip install -e '.[all]'",
        "from transformers import pipeline",
        "",
        f'classify = pipeline("{CLASSIFIES if is_classifier else PIPELINES[picture]}", model={name})',
        f"image = {domain.example or (_PICTURE if picture else _STUDY)}",
        f"for found in classify(image{asked}):",
        f'    print(found["label"], found["score"])  # {unit}',
    ]
    return "\n".join(lines)


def add_results(facts: CardFacts, files: Iterable[str | Path], model_sha256: str | None = None) -> CardFacts:
    """
    Figures of results files take the place of earlier ones of the same benchmark and metric.

    Args:
        model_sha256: of the model that the card is for; results of another one are refused.
    """
    for path in files:
        results = read_json(path, dict, 64 << 20)
        if "protocol" not in results or not isinstance(results.get("model"), dict):
            raise ValueError(f"{path} holds no results of `itemized-clip evaluate`.")
        evaluated, domain = results["model"]["sha256"], results["model"].get("domain")
        if model_sha256 is not None and evaluated != model_sha256 or domain not in (None, facts.domain):
            raise ValueError(
                f"{path} holds results of another model ({domain}, {evaluated[:12]}...) than this one ({facts.domain}, "
                f"{(model_sha256 or '')[:12]}...): evaluate this model."
            )
        fresh = [row.to_dict() for row in measured_figures(read_result(results))]
        keys = {(row["benchmark"], row["metric"]) for row in fresh}
        facts.measured = [row for row in facts.measured if (row["benchmark"], row["metric"]) not in keys] + fresh
    return facts


def card_text(facts: CardFacts) -> str:
    """The whole of `README.md`."""
    return render(facts).content.rstrip("\n") + "\n"


def is_edited(folder: str | os.PathLike) -> bool:
    """Whether the card of a folder is somebody's own work, and not what was last rendered there."""
    card, facts = Path(folder) / CARD, Path(folder) / FACTS
    if not card.exists():
        return False
    return not facts.exists() or CardFacts.read(facts).rendered != hash_text(read_text(card))[:16]


def write_card(folder: str | os.PathLike, facts: CardFacts, overwrite: bool = False) -> bool:
    """`card.yaml`, and `README.md` unless somebody has edited it; whether it was written."""
    folder = Path(folder)
    kept = is_edited(folder) and not overwrite
    if not kept:
        text = card_text(facts)
        facts.rendered = hash_text(text)[:16]
        (folder / CARD).write_text(text, encoding="utf-8")
    facts.write(folder / FACTS)
    return not kept
