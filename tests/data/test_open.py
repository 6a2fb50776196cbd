"""Every entrance opens and checks a study alike: what `inspect` refuses is refused, with the same code, by all of them."""

import csv
import gzip
import json
import struct

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel")

import torch
from click.testing import CliRunner
from PIL import Image
from tiny_models import ITEMS, tiny_config

from itemized_clip_hf import ItemizedCLIPImageProcessor, ItemizedCLIPModel, ItemizedCLIPProcessor
from itemized_clip_hf.data import checks
from itemized_clip_hf.data.open import REFUSALS, known_codes, require_usable
from itemized_clip_hf.data.readers.read import read_file
from itemized_clip_hf.data.study import Scan

UPRIGHT = np.diag([-4.0, 4.0, 4.0, 1.0])
UNUSABLE = ("constant", "not-finite", "mask")
"""Codes of scans that no processor can use, accepted or not."""


def head(seed: int = 0) -> np.ndarray:
    """HU of a ball of brain in a shell of bone in air, 48 voxels a side."""
    radius = np.linalg.norm(np.stack(np.indices((48, 48, 48)), -1) - 23.5, axis=-1) / 24
    world = np.where(radius < 0.75, 35.0, np.where(radius < 0.85, 900.0, -1000.0))
    return world + np.random.default_rng(seed).normal(0, 12, world.shape).round()


def save(path, array, affine=UPRIGHT) -> str:
    nibabel.save(nibabel.Nifti1Image(np.asarray(array, np.float32), affine), path)
    return str(path)


def change_header(path: str, offset: int, form: str, *values) -> str:
    raw = bytearray(gzip.decompress(open(path, "rb").read()))
    struct.pack_into(form, raw, offset, *values)
    with open(path, "wb") as file:
        file.write(gzip.compress(bytes(raw)))
    return path


def write_refused(folder, domain: str) -> dict[str, str]:
    """One file for each code that a NIfTI file can be refused with in a domain."""
    files = {}
    for code, array, affine in (
        ("not-finite", np.where(np.indices((48, 48, 48))[0] == 3, np.nan, head()), UPRIGHT),
        ("constant", np.full((48, 48, 48), 7.0), UPRIGHT),
        ("spacing", head(1) + 1000, np.diag([-4.0, 4.0, 24.0, 1.0])),
        ("sheared", head(2) + 1000, np.array([[-4.0, 1, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])),
        ("orientation-unknown", head(3) + 1000, UPRIGHT),
        ("two-orientations", head(4) + 1000, UPRIGHT),
    ):
        array = array if domain == "brain-mri" else array - 1000 * (array.max() > 1500)
        files[code] = save(folder / f"{code}.nii.gz", array, affine)
    change_header(files["orientation-unknown"], 252, "<2h", 0, 0)
    image = nibabel.load(files["two-orientations"])
    image.set_qform(np.diag([4.0, 4.0, 4.0, 1.0]), code=1)
    image.set_sform(UPRIGHT, code=1)
    nibabel.save(image, files["two-orientations"])
    if domain == "brain-mri":
        rest = {"not-raw": np.random.default_rng(5).normal(0, 1, (48, 48, 48)), "modality": head(6)}
    else:
        rest = {
            "missing-rescale": head(7) + 1024,
            "double-rescale": head(8) - 1024,
            "inverted": -head(9),
            "not-hu": head(10) * 0.1,
        }
    files.update({code: save(folder / f"{code}.nii.gz", array) for code, array in rest.items()})
    return files


def make(domain: str, folder):
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(ITEMS, vocab_size=120, context_length=24)
    size = {"scan_size": [8, 16, 16], **({"in_plane_size": 16} if domain != "chest-ct" else {})}
    processor = ItemizedCLIPProcessor.from_domain(domain, tokenizer=tokenizer, **size)
    torch.manual_seed(0)
    config = tiny_config()
    config.domain, config.preprocessing = domain, processor.preprocessing()
    model = ItemizedCLIPModel(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture(scope="module", params=["brain-mri", "head-ct", "chest-ct"])
def refused(request, tmp_path_factory):
    """Files that are refused, one that is not, a list of them all, a model and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    files = write_refused(folder, request.param)
    good = head(20) + (1000 if request.param == "brain-mri" else 0)
    files["ok"] = save(folder / "ok.nii.gz", good)
    lines = [{"id": code, "images": {"s": path}, "items": ITEMS[:2]} for code, path in files.items()]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return request.param, files, folder, *make(request.param, folder / "model")


def by_inspect(domain, files, folder, model, processor, accept):
    found = {}
    for code, path in files.items():
        try:
            report = checks.check_scan(read_file(path), domain, accept)
        except ValueError as error:
            found[code] = str(error)
        else:
            found[code] = report.reason() or None
    return found


def by_processor(domain, files, folder, model, processor, accept):
    return collect(files, lambda path: processor(images=path, accept=accept, return_tensors="pt"))


def by_processor_in_memory(domain, files, folder, model, processor, accept):
    return collect(files, lambda path: processor(images=read_file(path), accept=accept, return_tensors="pt"))


def by_pipeline(domain, files, folder, model, processor, accept):
    from transformers import pipeline

    classify = pipeline("zero-shot-study-classification", model=model, processor=processor, accept=accept)
    return collect(files, lambda path: classify({"s": path}, candidate_labels=ITEMS[:2]))


def by_training_list(domain, files, folder, model, processor, accept):
    from itemized_clip_hf.data.studies.records import read_records
    from itemized_clip_hf.trainer.collator import ItemizedCLIPCollator

    quarantine = folder / f"quarantine-{len(accept)}.csv"
    collator = ItemizedCLIPCollator(processor, quarantine=quarantine, accept=accept)
    collator(list(read_records(folder / "list.jsonl")))
    with quarantine.open(newline="") as file:
        rows = {row["study"].split("/")[0]: row["reason"] for row in csv.DictReader(file)}
    return {code: rows.get(code) for code in files}


def by_prepare(domain, files, folder, model, processor, accept):
    from itemized_clip_hf.data.studies.prepare import plan_studies, prepare_study

    plan, _ = plan_studies(folder / "list.jsonl", domain, accept=sorted(accept))
    image_processor = processor.image_processor
    found = dict.fromkeys(files)
    for row in plan.rows:
        skipped: list = []
        try:
            prepare_study(row, plan, image_processor, skipped.append, thumbnail=False)
        except ValueError as error:
            found[row["id"]] = "; ".join([*(entry.reason for entry in skipped), str(error)])
    return found


def by_shell(domain, files, folder, model, processor, accept):
    from itemized_clip_hf.cli.predict import command

    output = folder / f"scores-{len(accept)}.csv"
    arguments = ["-m", folder / "model", "-i", folder / "list.jsonl", "-p", ITEMS[0], "-o", output, "--json"]
    done = CliRunner().invoke(command, [*map(str, arguments), *(x for code in accept for x in ("--accept", code))])
    results = json.loads(done.stdout[done.stdout.index("{") :])["results"]
    return {row["id"]: None if "scores" in row and row["scores"] else row.get("error") for row in results}


def by_evaluate(domain, files, folder, model, processor, accept):
    from itemized_clip_hf.evaluation.tasks.run import run_task

    processor.image_processor.accept = accept
    found = run_task("items", model, processor, folder / "list.jsonl", resamples=2)
    processor.image_processor.accept = ()
    unreadable = {row["id"]: row["reason"] for row in found["unreadable"]}
    return {code: unreadable.get(code) for code in files}


def collect(files, use) -> dict:
    found = {}
    for code, path in files.items():
        try:
            use(path)
            found[code] = None
        except ValueError as error:
            found[code] = str(error)
    return found


ENTRANCES = [
    by_processor,
    by_processor_in_memory,
    by_pipeline,
    by_training_list,
    by_prepare,
    by_shell,
    by_evaluate,
]


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_entrance_refuses_what_inspect_refuses(refused, entrance):
    expected = by_inspect(*refused, accept=())
    assert {code for code, reason in expected.items() if reason} == set(refused[1]) - {"ok"}
    assert all(f"[{code}]" in reason for code, reason in expected.items() if reason)
    found = entrance(*refused, accept=())
    for code, reason in expected.items():
        assert (found[code] is None) == (reason is None), (code, found[code])
        assert reason is None or f"[{code}]" in found[code], (code, found[code])


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_entrance_takes_what_is_accepted(refused, entrance):
    codes = [code for code in refused[1] if code != "ok"]
    found = entrance(*refused, accept=codes)
    assert {code for code, reason in found.items() if reason} == set(codes) & set(UNUSABLE)


def test_an_accepted_scan_is_checked_again_where_nothing_is_accepted():
    scan = Scan(head().transpose(2, 1, 0) * 0.1, UPRIGHT @ np.eye(4)[[2, 1, 0, 3]], "s")
    require_usable(scan, "head-ct", ["not-hu"])
    with pytest.raises(ValueError, match="not-hu"):
        require_usable(scan, "head-ct")


def test_the_codes_are_those_of_the_checks():
    """A code that is added to the checks has to be one that `accept` knows."""
    rng = np.random.default_rng(0)
    seen = set(checks._NOTES[code][0] == "refuse" and code for code in checks._NOTES) - {False}
    assert seen <= set(REFUSALS) and {code for code, *_ in checks._WRONG_SCALES} <= set(REFUSALS)
    with pytest.raises(ValueError, match="Did you mean 'not-raw'"):
        known_codes(["not_raw"])
    with pytest.raises(ValueError, match="which no scan is refused with"):
        require_usable(Scan(rng.normal(100, 9, (8, 8, 8)), None, "s"), None, ["skull-stripped"])


def test_somebody_elses_scan_object_is_checked_too():
    class Mine:
        array = head() * 0.1
        affine = UPRIGHT @ np.eye(4)[[2, 1, 0, 3]]

    processor = ItemizedCLIPImageProcessor.from_domain("head-ct", scan_size=[8, 16, 16], in_plane_size=16)
    with pytest.raises(ValueError, match="not-hu"):
        processor(Mine())


def test_what_a_caller_accepts_is_not_saved(tmp_path):
    processor = ItemizedCLIPImageProcessor.from_domain("brain-mri", accept=["not-raw"])
    processor.save_pretrained(tmp_path)
    assert "accept" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert tuple(ItemizedCLIPImageProcessor.from_pretrained(tmp_path).accept) == ()


def test_a_damaged_file_of_a_study_folder_is_told(tmp_path, messages):
    save(tmp_path / "T1.nii.gz", head() + 1000)
    (tmp_path / "T2.nii.gz").write_bytes(b"\x1f\x8bdamaged")
    processor = ItemizedCLIPImageProcessor.from_domain("brain-mri", scan_size=[8, 16, 16], in_plane_size=16)
    told = []
    processor.process_study(str(tmp_path), on_error=lambda name, error: told.append(name))
    assert told == ["T2.nii.gz"]
    processor(str(tmp_path))
    assert any("T2.nii.gz is left out" in message for message in messages)


# ---------------------------------------------------------------- pictures


def photograph(path, orientation: int, **saving):
    y, x = np.mgrid[:96, :128]
    pixels = np.stack([x * 2 % 256, y * 2 % 256, (x + y) % 256], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **saving)
    return pixels


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_at_every_entrance(tmp_path, orientation):
    """PNG is lossless, so that all pixels have to be equal; EXIF values as the standard defines them."""
    from itemized_clip_hf.data.studies.cache import shrink
    from itemized_clip_hf.data.studies.records import Records

    pixels = photograph(tmp_path / "photo.png", orientation)
    expected = TURNED[orientation](pixels).copy()
    path = str(tmp_path / "photo.png")
    processor = ItemizedCLIPImageProcessor.from_domain("natural-images", scan_size=[1, 64, 64])
    want = processor(expected, return_tensors="pt")["pixel_values"]
    data = (tmp_path / "photo.png").read_bytes()
    given = {
        "path": path,
        "PIL": Image.open(path),
        "bytes": Records([{"image": data}])[0]["images"],
        "undecoded feature": Records([{"image": {"bytes": data, "path": None}}])[0]["images"],
        "cache": shrink(path, 96),
    }
    for name, image in given.items():
        got = processor(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(got, want), name


def test_a_heat_map_lies_on_the_upright_picture(tmp_path):
    photograph(tmp_path / "photo.png", 6)
    processor = ItemizedCLIPImageProcessor.from_domain("natural-images", scan_size=[1, 64, 64])
    scan = processor.process_study(str(tmp_path / "photo.png"))[0]
    assert scan.source.size == (96, 128)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty"])
def test_a_damaged_picture_is_a_plain_error(tmp_path, kind):
    photograph(tmp_path / "photo.jpg", 1, quality=95)
    data = (tmp_path / "photo.jpg").read_bytes()
    (tmp_path / "photo.jpg").write_bytes({"truncated": data[:900], "text": b"no picture", "empty": b""}[kind])
    processor = ItemizedCLIPImageProcessor.from_domain("natural-images", scan_size=[1, 64, 64])
    with pytest.raises(ValueError, match=r"photo\.jpg cannot be read as a picture"):
        processor(str(tmp_path / "photo.jpg"))


def test_pages_of_a_picture_are_not_dropped_in_silence(tmp_path, messages):
    pages = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (10, 200)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    processor = ItemizedCLIPImageProcessor.from_domain("natural-images", scan_size=[1, 64, 64])
    processor(str(tmp_path / "pages.tiff"))
    assert any("holds 2 pages" in message for message in messages)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("inspect", ["--accept", "not_raw"]),
        ("inspect", ["--domain", "banana"]),
        ("prepare", ["--accept", "not_raw", "--domain", "brain-mri", "-o", "out"]),
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path, monkeypatch, verb, arguments):
    import importlib

    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.nii.gz", head() + 1000)
    (tmp_path / "list.jsonl").write_text(json.dumps({"id": "a", "images": "a.nii.gz", "items": ITEMS[:1]}))
    command = importlib.import_module(f"itemized_clip_hf.cli.{verb}").command
    done = CliRunner().invoke(command, ["-i", "list.jsonl", *arguments])
    assert isinstance(done.exception, ValueError) and (
        "not-raw" in str(done.exception) or "banana" in str(done.exception)
    )


def test_a_warning_is_given_once_and_counted():
    from itemized_clip_hf.data.checks import Problem, Report
    from itemized_clip_hf.data.open import Warnings

    said: list[str] = []
    warnings = Warnings(said.append)
    for number in range(1001):
        problems = [Problem("spacing", "warn", "slices 11.0 mm apart", "small findings lie between them")]
        problems += [Problem("units", "note", "nothing", "nothing")]
        if number == 5:
            problems.append(Problem("coverage", "warn", "it covers 50 mm", "check units"))
        warnings(Report("AX", {}, problems), f"study-{number}/AX")
    assert said == [
        "study-0/AX: [spacing] slices 11.0 mm apart: small findings lie between them",
        "[spacing] holds for further scans, too: `inspect` lists them",
        "study-5/AX: [coverage] it covers 50 mm: check units",
        "[spacing] holds for 10 scans so far",
        "[spacing] holds for 100 scans so far",
        "[spacing] holds for 1,000 scans so far",
    ]
