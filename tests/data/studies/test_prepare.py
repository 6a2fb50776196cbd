"""Datasets from studies and reports: the same numbers as without the detour, whatever happens on the way."""

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nibabel")
pytest.importorskip("datasets")

from itemized_clip_hf import ItemizedCLIPImageProcessor
from itemized_clip_hf.data.files import hold_output
from itemized_clip_hf.data.studies.prepare import Plan, plan_studies, prepare
from itemized_clip_hf.data.studies.prepare import study as preparation
from itemized_clip_hf.data.studies.records import read_records
from itemized_clip_hf.data.studies.storage import check_prepared
from itemized_clip_hf.phantom import PhantomDataset, write_study
from itemized_clip_hf.recipes import load_recipe

SMALL = {"scan_size": [8, 24, 24], "in_plane_size": 32}
RECIPE = "domain: brain-mri\nimage: {scan_size: [8, 24, 24], in_plane_size: 32}\n"


def write_studies(folder: Path, count: int, corrupt: bool = True) -> tuple[Path, Path, set[str]]:
    """Studies, reports and the ids of five studies that cannot be used."""
    studies, rows = folder / "studies", []
    for study in PhantomDataset("train", count, shape=(8, 20, 20)):
        write_study(study, studies / study.id)
        (studies / study.id / "items.json").unlink()
        rows.append({"id": study.id, "items": study.items, "labels": {k: int(v) for k, v in study.labels.items()}})
    bad = set()
    if corrupt:
        names = sorted(path.name for path in studies.iterdir())
        bad = set(names[3 :: max(count // 5, 1)][:5])
        for kind, name in enumerate(sorted(bad)):
            for file in (studies / name).glob("*.nii.gz"):
                spoil(file, kind)
    (folder / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small.yaml").write_text(RECIPE)
    return studies, folder / "reports.jsonl", bad


def spoil(file: Path, kind: int) -> None:
    import nibabel

    image = nibabel.load(file)
    shape = image.shape
    if kind == 0:
        file.write_bytes(file.read_bytes()[:200])
    elif kind == 1:
        file.write_text("this is no image")
    elif kind == 2:
        nibabel.save(nibabel.Nifti1Image((np.indices(shape).sum(0) % 3).astype(np.int16), image.affine), file)
    elif kind == 3:
        nibabel.save(nibabel.Nifti1Image(np.full(shape, 7, np.int16), image.affine), file)
    else:
        data = bytearray(Path(file).read_bytes())
        data[len(data) // 2] ^= 255
        file.write_bytes(bytes(data))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(studies, reports, output, recipe, *more) -> list[str]:
    arguments = ["-i", studies, "--reports", reports, "-o", output, "--recipe", recipe, "--shard-size", 2, *more]
    code = "from itemized_clip_cli import main; main()"
    return [sys.executable, "-c", code, "prepare", *map(str, arguments)]


def quarantined(folder: Path) -> list[dict]:
    with (folder / "quarantine.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("domain", ["brain-mri", "head-ct", "chest-ct"])
def test_the_same_pixels_as_from_the_files(domain, write_volume, tmp_path):
    settings = {"scan_size": [8, 24, 24]} if domain == "chest-ct" else SMALL
    rng = np.random.default_rng(0)
    affine = np.array([[-4.0, 0, 0, 90], [0, 0, 9, -90], [0, 5.0, 0, -80], [0, 0, 0, 1]])
    files = {}
    for name in ("AX_T1", "COR_T2"):
        array = rng.normal(300, 80, (30, 28, 12)).clip(1, 900)
        if domain != "brain-mri":
            array = np.where(rng.random(array.shape) < 0.5, -1000, array - 300)
        files[name] = str(write_volume(f"{name}.nii.gz", array.astype(np.int16), affine=affine))
    items = ["no significant abnormalities."] if domain != "chest-ct" else ["no abnormalities detected"]
    rows = [{"id": "a", "images": files, "items": items, "labels": {"mass": 1}, "label": None}]
    plan = Plan(domain, rows, ["mass", "stroke"], settings, accept=["coverage"])
    prepare(plan, tmp_path / "out", num_workers=1, progress=False, context="fork")
    record = read_records(tmp_path / "out")[0]
    assert record["items"] == items and record["is_normal"] is True
    assert record["labels"] == {"mass": 1, "stroke": None} and record["id"] == "a"
    processor = ItemizedCLIPImageProcessor.from_domain(domain, **settings)
    stored, expected = processor.process_study(record["images"]), processor.process_study(files)
    assert [scan.name for scan in stored] == [scan.name for scan in expected]
    tolerance = 0.51 / (1500 if domain == "chest-ct" else 255) / 0.226
    for a, b in zip(stored, expected):
        torch.testing.assert_close(a.pixel_values, b.pixel_values, atol=tolerance, rtol=0)
        np.testing.assert_allclose(a.token_affine((2, 3, 3)), b.token_affine((2, 3, 3)), atol=1e-4)
    check_prepared(tmp_path / "out", processor)
    with pytest.raises(ValueError, match="prepared for other settings \\("):
        check_prepared(tmp_path / "out", ItemizedCLIPImageProcessor.from_domain("brain-mri", scan_size=[4, 8, 8]))


def test_nothing_is_lost_and_bad_data_is_named(tmp_path):
    studies, reports, bad = write_studies(tmp_path, 14)
    with reports.open("a") as file:
        file.write(json.dumps({"id": "ghost", "items": ["a mass"]}) + "\n")
        file.write(json.dumps({"id": "silent", "items": []}) + "\n")
    (studies / "unread").mkdir()
    (studies / "unread" / "T1.nii.gz").write_bytes(
        next(studies.glob("*/T2.nii.gz"), next(studies.glob("*/*.gz"))).read_bytes()
    )
    plan, skipped = plan_studies(studies, "brain-mri", reports, image_settings=SMALL, shard_size=3)
    summary = prepare(plan, tmp_path / "out", skipped, progress=False, context="fork")
    lost = quarantined(tmp_path / "out")
    reasons = {row["study"]: row["reason"] for row in lost if not row["file"]}
    assert set(reasons) == bad | {"ghost", "silent", "unread"}
    assert reasons["ghost"] == "there are no images of this id" and reasons["unread"] == "there is no report of this id"
    records = read_records(tmp_path / "out")
    ids = [records.id_of(i) for i in range(len(records))]
    assert sorted(ids) == sorted(set(plan_ids(reports)) - bad - {"ghost", "silent"}) and len(set(ids)) == len(ids)
    assert summary["studies"] == 9 and summary["studies_left_out"] == 8
    page = (tmp_path / "out" / "summary.html").read_text()
    assert page.count("<img") == 9 and all(name in page for name in ids)
    assert prepare(plan, tmp_path / "out", skipped, progress=False) == summary  # already there
    with pytest.raises(ValueError, match="holds another dataset"):
        prepare(Plan("brain-mri", plan.rows[:2]), tmp_path / "out", progress=False)


def plan_ids(reports: Path) -> list[str]:
    return [json.loads(line)["id"] for line in reports.read_text().splitlines()]


class Command:
    """The command in a process of its own, which starts its workers anew."""

    def __init__(self, plan, output, studies, reports, recipe):
        self.process = subprocess.Popen(
            command(studies, reports, output, recipe),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def runs(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def wait(self) -> None:
        self.process.wait()


def prepare_slowly(plan, output) -> None:
    """In a process of its own: a study takes long enough for it to be killed before it ends."""
    read = preparation._read_study

    def read_slowly(*args):
        time.sleep(0.2)
        return read(*args)

    preparation._read_study = read_slowly
    prepare(plan, output, progress=False, context="fork")


class Fork:
    """A copy of this process, which has imported everything."""

    def __init__(self, plan, output, *others):
        self.output = output
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=prepare_slowly, args=(plan, output))
        self.process.start()

    def runs(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        self.process.kill()

    def wait(self) -> None:
        self.process.join()
        for _ in range(200):  # its workers end after it, and hold the lock that they have from it until then
            with contextlib.suppress(ValueError), hold_output(self.output):
                return
            time.sleep(0.05)


def kill_and_restart(tmp_path: Path, count: int, kills: int, seed: int, start) -> None:
    studies, reports, bad = write_studies(tmp_path, count)
    image = load_recipe(str(tmp_path / "small.yaml")).image
    plan, skipped = plan_studies(studies, "brain-mri", reports, image_settings=image, shard_size=2)
    prepare(plan, tmp_path / "calm", skipped, progress=False, context="fork")
    rng = random.Random(seed)
    killed = 0
    parts = tmp_path / "killed" / ".parts"
    for finished in sorted(rng.randrange(count // 2 - 1) for _ in range(kills)):
        process = start(plan, tmp_path / "killed", studies, reports, tmp_path / "small.yaml")
        while process.runs() and len(list(parts.glob("part-*.arrow"))) <= finished:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        if process.runs():
            process.kill()
            killed += 1
        process.wait()
    assert killed >= max(kills // 2, 1)
    prepare(
        plan, tmp_path / "killed", skipped, progress=False, context="fork"
    )  # refuses another plan than the killed one's
    assert digest(tmp_path / "killed") == digest(tmp_path / "calm")
    records = read_records(tmp_path / "killed")
    ids = [records.id_of(i) for i in range(len(records))]
    assert len(ids) == len(set(ids)) == count - 5
    assert {row["study"] for row in quarantined(tmp_path / "killed") if not row["file"]} == bad


def test_killed_and_restarted(tmp_path):
    kill_and_restart(tmp_path, 12, 1, 0, Fork)


@pytest.mark.slow
def test_200_studies_killed_ten_times(tmp_path):
    kill_and_restart(tmp_path, 200, 10, 1, Command)


def test_number_of_workers_changes_nothing(tmp_path):
    studies, reports, _ = write_studies(tmp_path, 6, corrupt=False)
    plan, _ = plan_studies(studies, "brain-mri", reports, image_settings=SMALL, shard_size=1)
    for workers in (1, 3):
        prepare(plan, tmp_path / str(workers), num_workers=workers, progress=False, context="fork")
    assert digest(tmp_path / "1") == digest(tmp_path / "3")


def test_a_study_that_kills_its_process(tmp_path, monkeypatch):
    """It alone is left out, though every death ends the other worker in the middle of a study, too."""
    studies, reports, _ = write_studies(tmp_path, 6, corrupt=False)
    plan, _ = plan_studies(studies, "brain-mri", reports, image_settings=SMALL, shard_size=2)
    deadly = plan.rows[3]["id"]
    read = preparation._read_study

    def read_or_die(row, *args):
        if row["id"] == deadly:
            os._exit(9)
        time.sleep(0.2)
        return read(row, *args)

    monkeypatch.setattr(preparation, "_read_study", read_or_die)
    summary = prepare(plan, tmp_path / "out", num_workers=2, progress=False, context="fork")
    assert summary["studies"] == 5
    assert [(row["study"], row["reason"]) for row in quarantined(tmp_path / "out")] == [
        (deadly, "reading it ended the process, twice")
    ]


def test_parquet_for_load_dataset(tmp_path):
    import datasets

    studies, reports, _ = write_studies(tmp_path, 3, corrupt=False)
    plan, _ = plan_studies(studies, "brain-mri", reports, image_settings=SMALL, file_format="parquet")
    prepare(plan, tmp_path / "out", progress=False, num_workers=1, context="fork")
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"] == [row["id"] for row in plan.rows]
    own = read_records(tmp_path / "out")[1]
    assert [scan.array.shape for scan in own["images"].values()] == [(8, 32, 32)] * 4


def test_the_nifti_feature_of_datasets(tmp_path, write_volume):
    import datasets

    if not hasattr(datasets, "Nifti"):
        pytest.skip("this version of datasets has no Nifti feature")
    path = write_volume("AX_T1.nii.gz")
    features = datasets.Features({"id": datasets.Value("string"), "nifti": datasets.Nifti()})
    rows = datasets.Dataset.from_dict({"id": ["a"], "nifti": [str(path)]}, features=features)
    processor = ItemizedCLIPImageProcessor.from_domain("brain-mri", **SMALL)
    expected = processor.process_study(str(path))[0].pixel_values
    for decode in (True, False):
        rows.cast_column("nifti", datasets.Nifti(decode=decode)).save_to_disk(tmp_path / str(decode))
        images = read_records(tmp_path / str(decode))[0]["images"]
        assert torch.equal(processor.process_study(images)[0].pixel_values, expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "a", "items": ["x"]}, {"id": "a", "items": ["y"]}], "1 duplicate ids, e.g. \\['a'\\]"),
        ([{"id": "b", "items": ["x"]}], "no study .* has both images and items; e.g. 'b' \\(there are no images"),
        ([{"id": "a", "words": "x"}], "no column of items or report texts among \\['id', 'words'\\]"),
        ([{"id": "a", "items": ["x"], "labels": {"mass": "maybe"}}], "study a: the label 'mass' is 'maybe'"),
    ],
)
def test_reports_that_do_not_fit(rows, message, tmp_path, write_volume):
    write_volume("studies/a/AX_T1.nii.gz")
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        plan_studies(tmp_path / "studies", "brain-mri", tmp_path / "r.jsonl")


def test_report_texts_are_itemised(tmp_path, write_volume):
    write_volume("studies/a/AX_T1.nii.gz")
    write_volume("studies/b/AX_T1.nii.gz")
    (tmp_path / "r.csv").write_text(
        'id,report\na,"There is a small mass in the left lobe. No bleed is seen."\nb,"No mass. No bleed."\n'
    )
    plan, _ = plan_studies(tmp_path / "studies", "brain-mri", tmp_path / "r.csv")
    assert [row["items"] for row in plan.rows] == [
        ["There is a small mass in the left lobe."],
        ["no significant abnormalities."],
    ]


def test_pictures(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        for label in ("airport", "beach"):
            (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(len(name + label)).integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "in" / label / f"{name}.png")
    (tmp_path / "in" / "beach" / "b.png").write_bytes(b"\x89PNG broken")
    rows = [
        {"id": f"{label}/{name}", "items": ["a plane", "a road"], "label": label}
        for label in ("airport", "beach")
        for name in "ab"
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan, skipped = plan_studies(tmp_path / "in", "remote-sensing", tmp_path / "r.jsonl")
    prepare(plan, tmp_path / "out", skipped, num_workers=1, progress=False, context="fork")
    records = read_records(tmp_path / "out")
    assert [(record["id"], record["label"], record["images"].size) for record in records] == [
        ("airport/a", "airport", (24, 20)),
        ("airport/b", "airport", (24, 20)),
        ("beach/a", "beach", (24, 20)),
    ]
    assert quarantined(tmp_path / "out")[0]["study"] == "beach/b"


def test_train_from_a_prepared_folder(tmp_path):
    from itemized_clip_hf.trainer.run import train_recipe

    studies, reports, _ = write_studies(tmp_path, 4, corrupt=False)
    recipe_text = RECIPE + (
        "tokenizer: {vocab_size: 200, context_length: 24}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 2, report_to: none, use_cpu: true, save_strategy: 'no'}\n"
        "model: {projection_dim: 16, num_pooler_heads: 2, vision_config: {hidden_size: 24, num_hidden_layers: 3, "
        "num_attention_heads: 2, intermediate_size: 32, image_size: [8, 24, 24], patch_size: [4, 8, 8], "
        "attention_scopes: [slice, scan, study]}, text_config: {hidden_size: 24, num_hidden_layers: 1, "
        "num_attention_heads: 2, intermediate_size: 32}}\n"
    )
    (tmp_path / "small.yaml").write_text(recipe_text)
    recipe = load_recipe(str(tmp_path / "small.yaml"))
    plan, skipped = plan_studies(studies, "brain-mri", reports, image_settings=recipe.image)
    prepare(plan, tmp_path / "out", skipped, num_workers=1, progress=False, context="fork")
    losses = []
    for data, output in ((tmp_path / "out", "a"), (tmp_path / "raw.jsonl", "b")):
        if output == "b":
            rows = [
                {**row, "images": {Path(f).name[:-7]: str(f) for f in sorted(Path(row["images"]).glob("*.nii.gz"))}}
                for row in plan.rows
            ]
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        trainer = train_recipe(recipe, data, tmp_path / output)
        losses.append([entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry][0])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
