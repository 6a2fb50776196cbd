"""One rule for what a study is: every entrance opens the same studies and scans of an input, or refuses it alike."""

import csv
import hashlib
import io
import json
import re
from dataclasses import asdict

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("pydicom")

import torch
from dicom_files import make_grid, make_series, save, zip_folder
from PIL import Image
from tiny_models import ITEMS, tiny_config
from transformers import pipeline

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.cli._studies import Inputs, Opener
from itemized_clip_hf.data.layout import Layout, list_studies
from itemized_clip_hf.data.open import REFUSALS
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.data.scan_names import doubt_one_study
from itemized_clip_hf.data.studies.prepare import Plan, plan_studies, prepare_study
from itemized_clip_hf.data.studies.records import read_records
from itemized_clip_hf.evaluation.evaluate import open_record
from itemized_clip_hf.evaluation.protocols.images import ProtocolStudies
from itemized_clip_hf.models.tokenizer import train_tokenizer
from itemized_clip_hf.trainer.collator import ItemizedCLIPCollator
from itemized_clip_hf.version import __version__

VOLUMES = ("brain-mri", "head-ct", "chest-ct")
PICTURES = ("remote-sensing", "natural-images")
SERIES = {"brain-mri": ("AX T1", "AX T2"), "head-ct": ("AX BONE", "AX SOFT"), "chest-ct": ("AX BONE", "AX SOFT")}
COLORS = {"a": (200, 10, 20), "b": (10, 200, 20)}
FEW = make_grid(slices=4, size=(6, 7))


def write_volume(path, seed: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(100, 30, (8, 9, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0])), path)


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    """Modality -> a folder of two patients with two series each, in folders of their own, and a zip of the first."""
    folders = {}
    for modality, names in (("MR", SERIES["brain-mri"]), ("CT", SERIES["head-ct"])):
        folders[modality] = tmp_path_factory.mktemp(modality)
        for number in (1, 2):
            own = {"PatientID": f"P{number}", "StudyInstanceUID": f"1.2.{number}"}
            for name in names:
                made = make_series(FEW, modality, SeriesDescription=name, **own)
                save(made, folders[modality] / "all" / f"patient{number}" / name)
        (folders[modality] / "zips").mkdir()
        zip_folder(folders[modality] / "all" / "patient1", folders[modality] / "zips" / "patient1.zip")
    return folders


def write_inputs(folder, domain: str, dicom) -> dict:
    """Layout -> path, or list of paths."""
    if domain in PICTURES:
        for name, color in COLORS.items():
            for place in (folder / "flat" / f"{name}.png", folder / "classes" / f"of-{name}" / f"{name}.png"):
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (9, 8), color).save(place)
        (folder / "study").mkdir()
        Image.new("RGB", (9, 8), COLORS["a"]).save(folder / "study" / "a.png")
    else:
        for number, name in enumerate("ab"):
            write_volume(folder / "flat" / f"{name}.nii.gz", number)
        for number, name in enumerate(SERIES[domain]):
            write_volume(folder / "study" / f"{name}.nii.gz", number)
    files = sorted((folder / "flat").iterdir())
    return {
        "file": files[0],
        "flat folder": folder / "flat",
        "study folder": folder / "study",
        "patient folder": dicom / "all" / "patient1",
        "parent folder": folder / "classes" if domain in PICTURES else dicom / "all",
        "zip": dicom / "zips" / "patient1.zip",
        "list": files,
    }


class Place:
    """Inputs of a domain, a model of a few parameters and its processor."""

    def __init__(self, domain: str, folder, dicom):
        self.domain, self.folder = domain, folder
        self.inputs = write_inputs(folder, domain, dicom["MR" if domain == "brain-mri" else "CT"])
        pictures = domain in PICTURES
        size = {"scan_size": [1, 16, 16]} if pictures else {"scan_size": [8, 16, 16]}
        if domain in ("brain-mri", "head-ct"):
            size["in_plane_size"] = 16
        self.size = size
        tokenizer = train_tokenizer(ITEMS, vocab_size=120, context_length=24)
        self.processor = ItemizedCLIPProcessor.from_domain(domain, tokenizer=tokenizer, **size)
        self.processor.image_processor.accept = list(REFUSALS)
        shape = {"image_size": [1, 16, 16], "patch_size": [1, 8, 8], "num_channels": 3} if pictures else {}
        config = tiny_config(**shape)
        config.domain = domain
        torch.manual_seed(0)
        self.model = ItemizedCLIPModel(config).eval()
        self.rule = Layout.of_domain(domain)

    def row(self, images) -> dict:
        paths = [str(path) for path in images] if isinstance(images, list) else str(images)
        return {"id": "row", "images": paths, "items": ITEMS[:1]}

    def write_list(self, images):
        path = self.folder / "list.jsonl"
        path.write_text(json.dumps(self.row(images)))
        return path

    def scans_of(self, study) -> tuple[str, ...]:
        return name_scans(self.processor.image_processor.process_study(study))


def name_scans(scans) -> tuple[str, ...]:
    """What was shown: names of volumes, or of pictures by their color."""
    return name_shown((getattr(scan.source, "name", None), scan.source) for scan in scans)


def name_shown(shown) -> tuple[str, ...]:
    names = set()
    for name, source in shown:
        color = None if name else tuple(np.asarray(source).reshape(-1, 3)[0])
        names.add(re.sub("_[A-Z][a-z]+Window", "", name) if name else next(n for n, c in COLORS.items() if c == color))
    return tuple(sorted(names))


@pytest.fixture(scope="module", params=[*VOLUMES, *PICTURES])
def place(request, tmp_path_factory, dicom):
    return Place(request.param, tmp_path_factory.mktemp(request.param), dicom)


def by_shell(place, images):
    source = place.write_list(images) if isinstance(images, list) else images
    opener = Opener(domain=place.domain, accept=REFUSALS)
    return {record["id"]: place.scans_of(opener(record)) for record in Inputs((str(source),), place.rule)}


def by_processor(place, images):
    images = place.row(images)["images"]
    found = [place.scans_of(study) for study in place.processor.image_processor.split_studies(images)]
    assert len(place.processor(images=images, return_tensors="pt")["pixel_values"]) == len(found)
    return dict(enumerate(found))


def by_pipeline(place, images):
    classify = pipeline("zero-shot-study-classification", model=place.model, processor=place.processor)
    results = classify(place.row(images)["images"], candidate_labels=ITEMS[:1], heat_maps=True)
    maps = [result[0]["heat_maps"] for result in (results if isinstance(results[0], list) else [results])]
    return {number: name_shown((heat.scan_name, heat.source) for heat in own) for number, own in enumerate(maps)}


def by_prepare(place, images):
    settings = {"image_settings": place.size, "accept": sorted(REFUSALS)}
    if isinstance(images, list):
        plan, skipped = plan_studies(place.write_list(images), place.domain, **settings)
    else:
        reports = place.folder / "reports.jsonl"
        rows = [{"id": name, "items": ITEMS[:1]} for name in ids_of(place, images)]
        reports.write_text("\n".join(map(json.dumps, rows)))
        plan, skipped = plan_studies(images, place.domain, reports, **settings)
    assert not skipped
    found = {}
    for row in plan.rows:
        stored, _ = prepare_study(row, plan, place.processor.image_processor, (skipped := []).append)
        assert not skipped
        if "image" in stored:
            shown = [(None, Image.open(io.BytesIO(stored["image"]["bytes"])))]
        else:
            shown = [(scan["name"], None) for scan in stored["scans"]]
        found[row["id"]] = name_shown(shown)
    return found


def by_evaluate(place, images):
    if isinstance(images, list):
        studies = ProtocolStudies(place.write_list(images), ["row"])
    else:
        ids = ids_of(place, images)
        inside = len(ids) > 1 or place.domain in PICTURES and images.is_dir() and images.name != "patient1"
        studies = ProtocolStudies(images if inside else images.parent, [name.split("/")[-1] for name in ids])
    records = [studies[number] for number in range(len(studies))]
    return {record["id"]: place.scans_of(open_record(record, place.rule)) for record in records}


def by_training(place, images):
    (record,) = read_records(place.write_list(images))
    return {"row": name_scans(ItemizedCLIPCollator(place.processor).prepare(record).scans)}


def expected(domain: str, layout: str) -> dict | str:
    """The studies of an input, or what a refusal says."""
    scans = tuple(sorted(SERIES.get(domain, ())))
    visit = {"patient1": scans} if scans else "picture"
    one_scan = domain not in ("brain-mri", "head-ct")
    each = {"a": ("a",), "b": ("b",)}
    of_pictures = {"study folder": {"a": ("a",)}, "parent folder": {"of-a/a": ("a",), "of-b/b": ("b",)}}
    if domain in PICTURES and layout in of_pictures:
        return of_pictures[layout]
    return {
        "file": {"a": ("a",)},
        "flat folder": each if one_scan else "2 volume files .* cannot be told .*--layout study or --layout cohort",
        "study folder": {name: (name,) for name in scans} if one_scan else {"study": scans},
        "patient folder": visit,
        "parent folder": {"patient1": scans, "patient2": scans},
        "zip": visit,
        "list": each if one_scan else {"row": ("a", "b")},
    }[layout]


TAKES_LISTS_APART = (by_processor, by_pipeline)
TAKES_ONE = (*TAKES_LISTS_APART, by_training)
KNOWS_IDS = (by_prepare, by_evaluate)


def ids_of(place, images) -> list[str]:
    """What the labels or reports of an input call its studies."""
    found = expected(place.domain, next(name for name, own in place.inputs.items() if own == images))
    return list(found) if isinstance(found, dict) else ["a", "b"] if images.name == "flat" else ["patient1"]


def expected_of(entrance, domain: str, layout: str) -> dict | str:
    """What differs between entrances: how many studies they take, and whether they know what the studies are called."""
    found = expected(domain, layout)
    if layout == "list":
        one_study = domain in ("brain-mri", "head-ct") or entrance in TAKES_LISTS_APART
        return found if one_study else "the study has 2 files, expected one"
    if layout == "flat folder" and entrance in KNOWS_IDS:
        return {"a": ("a",), "b": ("b",)}
    if isinstance(found, dict) and len(found) > 1 and entrance in TAKES_ONE:
        return f"holds {len(found)} studies, .*expected one"
    return found


@pytest.mark.parametrize(
    "layout", ["file", "flat folder", "study folder", "patient folder", "parent folder", "zip", "list"]
)
@pytest.mark.parametrize("entrance", [by_shell, *TAKES_ONE, *KNOWS_IDS])
def test_every_entrance_opens_the_same_studies(place, entrance, layout):
    images, right = place.inputs[layout], expected_of(entrance, place.domain, layout)
    if isinstance(right, str):
        with pytest.raises(ValueError, match=right):
            entrance(place, images)
        return
    found = entrance(place, images)
    assert list(found.values()) == list(right.values())
    if entrance not in TAKES_ONE:
        assert [name.split("/")[-1] for name in found] == [name.split("/")[-1] for name in right]


@pytest.mark.parametrize(
    "names",
    [
        "T1 T2 FLAIR",
        "t1 t1c t2 flair",
        "AX_T1 AX_T2 SAG_T1 AX_T1_POST",
        "p1_T1 p1_T2 p1_T2_FLAIR",
        "sub-01_T1w sub-01_T2w",
        "3_AX_T1 5_AX_T2 7_SAG_T1",
        "T1 T1-2 T1-3 T2",
        "T1_1 T1_2 FLAIR",
        "dwi_b0 dwi_trace_b1000 t1_sag",
        "BraTS-GLI-00000-000-t1c BraTS-GLI-00000-000-t1n BraTS-GLI-00000-000-t2f",
        "thin bone",
        "CT_PLAIN CT_bone_4cc",
        "only",
    ],
)
def test_names_of_one_study(names):
    assert doubt_one_study(names.split()) == ""


@pytest.mark.parametrize(
    "names",
    [
        "p1 p2",
        "001 002 003",
        "smith jones",
        "p1_T1 p2_T1",
        "p1_T1 p1_T2 p2_T1 p2_T2",
        "p1_T1 p2_T2",
        "sub-01_T1w sub-02_T1w",
        "IXI002-Guys-0828-T1 IXI012-HH-1211-T1",
        "smith_T1 jones_T1",
        "1_T1 2_T1",
        "T1_1 T1_2",
        "T1_20190101 T2_20200202",
        "head_ct_1 head_ct_2",
    ],
)
def test_names_of_perhaps_several_patients(names):
    assert doubt_one_study(names.split())


def listed(path, layout=None) -> dict[str, str]:
    return {row["id"]: row["images"].removeprefix(f"{path}/") for row in list_studies(path, layout)}


def test_what_the_user_says(tmp_path, tokenizer):
    for number, name in enumerate(("p1", "p2")):
        write_volume(tmp_path / "all" / f"{name}.nii.gz", number)
    brain = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16)
    folder = str(tmp_path / "all")
    assert brain(images=folder, layout="study", return_tensors="pt")["pixel_values"].shape[:2] == (1, 2)
    with pytest.raises(ValueError, match="holds 2 studies"):
        brain(images=folder, layout="cohort")
    with pytest.raises(ValueError, match="expected 'study' or 'cohort'"):
        brain(images=folder, layout="both")
    brain.image_processor.layout = "study"
    assert "layout" not in brain.image_processor.to_dict()
    assert brain(images={"AX_T1": folder}, return_tensors="pt")["pixel_values"].shape[:2] == (1, 2)
    assert listed(tmp_path / "all", Layout(choice="cohort")) == {"p1": "p1.nii.gz", "p2": "p2.nii.gz"}
    assert listed(tmp_path / "all", Layout(ids=frozenset({"p2", "other"}))) == {"p1": "p1.nii.gz", "p2": "p2.nii.gz"}
    assert listed(tmp_path, Layout(choice="cohort")) == {"p1": "all/p1.nii.gz", "p2": "all/p2.nii.gz"}
    write_volume(tmp_path / "more" / "p3.nii.gz", 3)
    assert listed(tmp_path, Layout(choice="cohort")) == {
        "all/p1": "all/p1.nii.gz",
        "all/p2": "all/p2.nii.gz",
        "more": "more",
    }
    with pytest.raises(ValueError, match="every file is a study"):
        Layout.of_domain("chest-ct", "study")


def test_masks_beside_the_scan_are_no_studies(tmp_path):
    chest = Layout.of_domain("chest-ct")
    write_volume(tmp_path / "p1" / "ct.nii.gz", 0)
    write_volume(tmp_path / "p1" / "lung_seg.nii.gz", 1)
    assert listed(tmp_path / "p1", chest) == {"p1": "ct.nii.gz"}
    assert list(read_file(tmp_path / "p1", layout=chest).scans) == ["ct"]
    assert list(read_file(tmp_path / "p1").scans) == ["ct", "lung_seg"]  # the values say whether it is one


def test_folders_called_like_scans(tmp_path):
    for name in ("T1", "T2"):
        write_volume(tmp_path / name / "image.nii.gz", 0)
    with pytest.raises(ValueError, match="2 folders that are called like the scans of one study"):
        list_studies(tmp_path)
    assert listed(tmp_path, Layout(choice="cohort")) == {"T1": "T1", "T2": "T2"}


def test_tensors_as_the_reference_stores_them(tmp_path):
    for study in ("s1", "s2"):
        for series in ("AX_T1", "AX_T2"):
            (tmp_path / study / series).mkdir(parents=True)
            torch.save(torch.rand(4, 5, 6), tmp_path / study / series / "img.pt")
    assert listed(tmp_path) == {"s1": "s1", "s2": "s2"}
    assert [row["id"] for row in list_studies(tmp_path / "s1")] == ["s1"]
    assert list(read_file(tmp_path / "s1").scans) == ["AX_T1", "AX_T2"]
    with pytest.raises(ValueError, match="holds 2 studies"):
        read_file(tmp_path)


def visit(folder, *series, **fields):
    for name in series:
        save(make_series(FEW, "MR", SeriesDescription=name, **fields), folder / name)


def test_dicom_is_parted_by_its_headers(tmp_path):
    first, second = {"StudyInstanceUID": "1.2.1"}, {"StudyInstanceUID": "1.2.2"}
    visit(tmp_path / "patient" / "2019", "T1", "T2", **first)
    visit(tmp_path / "patient" / "2020", "T1", **second)
    assert listed(tmp_path / "patient") == {"2019": "2019", "2020": "2020"}
    with pytest.raises(ValueError, match="patient holds 2 studies"):
        read_file(tmp_path / "patient")
    (tmp_path / "patient").rename(tmp_path / "all")
    (tmp_path / "patient").mkdir()
    (tmp_path / "all").rename(tmp_path / "patient" / "all")
    visit(tmp_path / "patient" / "other", "T1", StudyInstanceUID="1.2.3", PatientID="OTHER")
    assert list(listed(tmp_path / "patient")) == ["all/2019", "all/2020", "other"]
    visit(tmp_path / "mixed" / "a", "T1", **first)
    visit(tmp_path / "mixed" / "b", "T2", **first)
    visit(tmp_path / "mixed" / "c", "T1", **second)
    for use in (list_studies, read_file):
        with pytest.raises(ValueError, match="a, b hold series of the same one"):
            use(tmp_path / "mixed")


def test_dicom_that_does_not_say_whose_it_is(tmp_path):
    nobody = dict.fromkeys(("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID"))
    for name in ("a", "b"):
        visit(tmp_path / name, "T1", **nobody)
    with pytest.raises(ValueError, match="2 folders or zips .* name neither study nor patient"):
        list_studies(tmp_path)
    assert len(list_studies(tmp_path, Layout(choice="study"))) == 1
    assert list(listed(tmp_path, Layout(choice="cohort"))) == ["a", "b"]


def test_zips_of_one_visit_are_one_study(tmp_path):
    for name in ("T1", "T2"):
        visit(tmp_path / "made", name)
        (tmp_path / "zips").mkdir(exist_ok=True)
        zip_folder(tmp_path / "made" / name, tmp_path / "zips" / f"{name}.zip")
    assert [row["id"] for row in list_studies(tmp_path / "zips")] == ["zips"]
    assert sorted(read_file(tmp_path / "zips").scans) == ["T1", "T2"]


def test_folders_beside_zips_of_one_visit_are_refused(tmp_path):
    """One of the two kinds would be left out."""
    for name in ("T1", "T2"):
        visit(tmp_path / "study", name)
    zip_folder(tmp_path / "study" / "T2", tmp_path / "study" / "T2.zip")
    with pytest.raises(ValueError, match="folders and zips of one study"):
        list_studies(tmp_path / "study")


def test_what_lies_beside_volume_files_is_named(tmp_path):
    write_volume(tmp_path / "T1.nii.gz", 0)
    write_volume(tmp_path / "derived" / "T1.nii.gz", 1)
    write_volume(tmp_path / "masks" / "T1.nii.gz", 1)
    visit(tmp_path, "raw")
    for file in sorted((tmp_path / "raw").iterdir())[:2]:
        file.rename(tmp_path / file.name)
    study = read_file(tmp_path)
    assert list(study.scans) == ["T1"]
    assert [skipped.scan for skipped in study.skipped] == ["DICOM files", "derived", "raw"]


def test_folders_in_a_list_are_not_joined(tmp_path, tokenizer):
    for patient in ("p1", "p2"):
        for name in ("T1", "T2"):
            write_volume(tmp_path / patient / f"{name}.nii.gz", 0)
    folders = [str(tmp_path / "p1"), str(tmp_path / "p2")]
    brain = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16)
    assert brain(images=folders, return_tensors="pt")["pixel_values"].shape[:2] == (2, 2)  # a batch
    with pytest.raises(ValueError, match="a folder of 2 scans"):  # where one study is expected
        brain.image_processor.process_study(folders)
    for use in (open_record, Opener()):
        with pytest.raises(ValueError, match="a folder of 2 scans"):
            brain.image_processor.process_study(use({"id": "x", "images": folders}))


def test_a_folder_in_a_training_list_hides_no_damaged_scan(tmp_path, tokenizer):
    for number, name in enumerate(("AX_T1", "AX_T2", "AX_DWI")):
        write_volume(tmp_path / "s" / f"{name}.nii.gz", number)
    (tmp_path / "s" / "AX_T2.nii.gz").write_bytes(b"\x1f\x8bdamaged")
    nibabel.save(nibabel.Nifti1Image(np.full((8, 9, 6), 7.0), np.eye(4)), tmp_path / "s" / "AX_DWI.nii.gz")
    brain = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16)
    rows = {}
    for kind, images in (
        ("folder", "s"),
        ("dictionary", {path.name[:-7]: f"s/{path.name}" for path in (tmp_path / "s").iterdir()}),
    ):
        (tmp_path / "list.jsonl").write_text(json.dumps({"id": "s", "images": images, "items": ITEMS[:1]}))
        collator = ItemizedCLIPCollator(brain, quarantine=tmp_path / f"{kind}.csv")
        batch = collator(list(read_records(tmp_path / "list.jsonl")))
        assert batch["scan_mask"].tolist() == [[True]]
        with (tmp_path / f"{kind}.csv").open(newline="") as file:
            rows[kind] = sorted((row["study"].removesuffix(".nii.gz"), row["reason"]) for row in csv.DictReader(file))
    assert [name for name, _ in rows["folder"]] == ["s/AX_DWI", "s/AX_T2"] and rows["folder"] == rows["dictionary"]


def test_what_was_prepared_before_there_was_a_choice_goes_on():
    plan = Plan("brain-mri", [{"id": "a"}])
    known = {name: value for name, value in asdict(plan).items() if name != "layout"}
    assert plan.digest() == hashlib.sha256(json.dumps([__version__, known], sort_keys=True).encode()).hexdigest()
    assert Plan("brain-mri", [{"id": "a"}], layout="study").digest() != plan.digest()
