"""What the buttons do, without a page."""

import copy
import gzip
import io
import json
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from apps import AFFINE, tiny_brain, tiny_pictures, write_dicom_zip, write_nifti, write_picture
from dicom_files import SECRETS
from tiny_models import ITEMS

from itemized_clip_hf.app import actions
from itemized_clip_hf.app.downloads import offer_files, offer_viewer
from itemized_clip_hf.app.limits import Limits
from itemized_clip_hf.app.models import load_models
from itemized_clip_hf.app.session import Sessions, StoppedError
from itemized_clip_hf.app.tables import result_table, text_table, verdict_table
from itemized_clip_hf.evaluation.region_to_text import rank_texts
from itemized_clip_hf.explain.encoded import explain_result

nibabel = pytest.importorskip("nibabel")
pytest.importorskip("matplotlib")
LIMITS = Limits()
QUESTION = actions.Question({item: [item] for item in ITEMS})


@pytest.fixture(scope="module")
def models():
    return load_models({"brain": tiny_brain(), "aerial": tiny_pictures()})


@pytest.fixture
def sessions():
    made = Sessions(LIMITS)
    yield made
    made.close()


@pytest.fixture
def session(sessions):
    return sessions.of("tab")


def upload(sessions, session, model, *files, slot="current"):
    return actions.take_upload(sessions, session, slot, files, model)


def two_scans(sessions, seed=0):
    names = ("AX_T1.nii.gz", "AX_FLAIR.nii.gz")
    return [write_nifti(sessions.uploads / f"{seed}{n}" / name, seed + n) for n, name in enumerate(names)]


def test_a_run_is_what_the_package_gives(models, sessions, session, tmp_path):
    """Scores, attention and places of the app are those of `explain_result` on the same files."""
    model = models["brain"]
    opened = upload(sessions, session, model, *two_scans(sessions))
    assert set(opened.images.scans) == {"AX_T1", "AX_FLAIR"} and not opened.from_dicom
    steps = []
    results = actions.run(session, model, QUESTION, LIMITS, lambda part, what: steps.append((part, what)))
    names = ("AX_FLAIR", "AX_T1")
    for n, name in enumerate(names):
        write_nifti(tmp_path / f"{name}.nii.gz", 1 - n)
    files = {name: str(tmp_path / f"{name}.nii.gz") for name in names}
    expected = explain_result(model.model, model.processor, files, QUESTION.prompts)
    for found, wanted in zip(results["current"].findings, expected.findings):
        assert found.score == pytest.approx(wanted.score, abs=1e-6)
        np.testing.assert_allclose(found.attention, wanted.attention, rtol=1e-4)
    parts = [part for part, _ in steps]
    assert parts == sorted(parts) and 0 <= parts[0] and parts[-1] <= 1 and len(parts) >= 4
    assert results["current"].about["model"]["name"] == "brain"


def test_a_second_run_passes_texts_only(models, sessions, session, monkeypatch):
    model = models["brain"]
    upload(sessions, session, model, *two_scans(sessions))
    first = actions.run(session, model, QUESTION, LIMITS)["current"]
    calls = []
    handle = model.model.vision_model.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        other = actions.run(session, model, actions.Question({"x": ["enlarged ventricles"]}, "logit"), LIMITS)[
            "current"
        ]
        assert not calls and other.scans is first.scans and other.quantity == "logit"
        upload(sessions, session, model, *two_scans(sessions, 5))
        actions.run(session, model, QUESTION, LIMITS)
        assert len(calls) == 1
    finally:
        handle.remove()


def test_prior_and_current(models, sessions, session):
    model = models["brain"]
    upload(sessions, session, model, *two_scans(sessions))
    upload(sessions, session, model, *two_scans(sessions, 3), slot="prior")
    results = actions.run(session, model, QUESTION, LIMITS)
    table = result_table(results)
    for now, before in zip(results["current"].findings, results["prior"].findings):
        assert f"{before.score:.3f}</td>" in table and f"{now.score - before.score:+.3f}</span>" in table
    actions.clear_study(session, "prior")
    assert set(actions.run(session, model, QUESTION, LIMITS)) == {"current"}


def test_a_place_is_described_as_the_package_does(models, sessions, session):
    """mm of the viewer -> voxel of the source -> the texts of its patch, by `rank_texts` on the files themselves."""
    model = models["brain"]
    upload(sessions, session, model, *two_scans(sessions))
    with pytest.raises(ValueError, match="run the findings first"):
        actions.describe_place(session, "current", {"scan": 0, "mm": [0, 0, 0]}, "", models, LIMITS)
    result = actions.run(session, model, QUESTION, LIMITS)["current"]
    voxel = np.array([7, 30, 20])  # depth first: the third axis of the file is the first here
    scan = result.scans[1]
    mm = (np.asarray(scan.source.affine) @ [*voxel, 1])[:3]
    np.testing.assert_allclose(mm, (AFFINE @ [*voxel[::-1], 1])[:3])
    place = {"scan": 1, "mm": [float(x) for x in mm + 0.3]}
    assert actions.place_to_voxel(result, place) == (1, tuple(voxel))
    bank = "\n".join([*ITEMS, "right frontal lobe"])
    ranked = actions.describe_place(session, "current", place, bank, models, LIMITS, top=3)
    study = {one.name: one.source for one in result.scans}
    box = {scan.name: [(int(v), int(v) + 1) for v in voxel]}
    assert ranked == rank_texts(model.model, model.processor, study, bank.splitlines(), box, top=3)
    elsewhere = actions.describe_place(session, "current", {**place, "scan": 0}, bank, models, LIMITS, top=3)
    assert elsewhere != ranked


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"scan": 9, "mm": [0, 0, 0]},
        {"scan": -1, "mm": [0, 0, 0]},
        {"scan": 0, "mm": [0, 0]},
        {"scan": "x", "mm": "abc"},
    ]
    + [{"scan": 0, "mm": [1e9, 0, 0]}, {"scan": 0, "mm": [float("nan")] * 3}, {"scan": 0}, {"scan": 0, "mm": None}],
)
def test_places_that_are_none(models, sessions, session, place):
    upload(sessions, session, models["brain"], *two_scans(sessions))
    actions.run(session, models["brain"], QUESTION, LIMITS)
    with pytest.raises(ValueError, match="no place of a scan|outside of the scan"):
        actions.describe_place(session, "current", place, "a text", models, LIMITS)


def test_pictures(models, sessions, session):
    model = models["aerial"]
    upload(sessions, session, model, write_picture(sessions.uploads / "field.png"))
    assert "40 × 48" in verdict_table(session.slots["current"].opened, actions.verdict_of(session, "current", model))
    result = actions.run(session, model, QUESTION, LIMITS)["current"]
    place = {"scan": 0, "row": 0.99, "column": 0.5}
    _, (depth, row, column) = actions.place_to_voxel(result, place)
    assert depth == 0 and row >= 36 and 22 <= column <= 25
    assert len(actions.describe_place(session, "current", place, "a\nb", models, LIMITS)) == 2
    offered = offer_files(session, "current")
    assert set(offered) == {"HTML report", "JSON", "CSV"}
    for ask in (actions.verdict_of, lambda tab, _, other: actions.run(tab, other, QUESTION, LIMITS)):
        with pytest.raises(ValueError, match="the study is a picture, but the chosen model takes volumes"):
            ask(session, "current", models["brain"])
    with pytest.raises(ValueError, match="takes one picture at a time"):
        upload(sessions, session, model, *(write_picture(sessions.uploads / f"{n}.png", n) for n in range(2)))
    with pytest.raises(ValueError, match="takes one picture at a time"):
        upload(sessions, session, model, write_nifti(sessions.uploads / "t1.nii.gz"))
    with pytest.raises(ValueError, match="a picture, where a volume is expected"):
        upload(sessions, session, models["brain"], write_picture(sessions.uploads / "field.png"))


def fetch(sessions, url):
    _, token, name = url.split("/")
    return sessions.find(token)[1].make().read_bytes()


def test_files_to_take_away(models, sessions, session):
    """Each is what the result says; of a DICOM study nothing but voxels and geometry leaves the reader."""
    model = models["brain"]
    opened = upload(sessions, session, model, write_dicom_zip(sessions.uploads / "mr.zip"))
    assert opened.from_dicom
    result = actions.run(session, model, QUESTION, LIMITS)["current"]
    offered = offer_files(session, "current")
    assert {"HTML report", "JSON", "CSV", "NIfTI heat maps"} <= set(offered)
    told = json.loads(fetch(sessions, offered["JSON"]))
    assert told == json.loads(json.dumps(result.to_dict())) and told["calibrated"] is False
    assert fetch(sessions, offered["CSV"]).decode() == result.to_csv()
    page = fetch(sessions, offered["HTML report"]).decode()
    assert "Research only" in page and ITEMS[0] in page
    archive = zipfile.ZipFile(io.BytesIO(fetch(sessions, offered["NIfTI heat maps"])))
    assert len(archive.namelist()) == len(ITEMS)
    content = nibabel.Nifti1Image.from_stream(gzip.GzipFile(fileobj=archive.open(archive.namelist()[1])))
    (heat,) = result.heat_maps(1)
    np.testing.assert_allclose(content.get_fdata().transpose(2, 1, 0), heat.values, atol=1e-4)
    for what in ("JSON", "CSV", "HTML report"):
        shown = fetch(sessions, offered[what]).decode().lower()
        assert not [secret for secret in SECRETS if secret in shown], what
    viewer = offer_viewer(session, "current")
    assert viewer.endswith("/report.html") and fetch(sessions, viewer).decode() == page
    sessions.end("tab")
    assert sessions.find(viewer.split("/")[1]) is None


def write_negative(sessions):
    """Intensities that were normalized before: none that a scanner gives."""
    values = np.random.default_rng(0).normal(0, 1, (44, 48, 12)).astype(np.float32)
    path = sessions.uploads / "b" / "AX_T2.nii.gz"
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), path)
    return path


def test_refused_scans_are_left_out_and_can_be_accepted(models, sessions, session):
    model = models["brain"]
    upload(sessions, session, model, write_nifti(sessions.uploads / "a" / "AX_T1.nii.gz"), write_negative(sessions))
    verdict = actions.verdict_of(session, "current", model)
    assert set(verdict.usable) == {"AX_T1"} and verdict.level == "warn" and len(verdict.refused) == 1
    table = verdict_table(session.slots["current"].opened, verdict)
    assert "not-raw" in table and "1 scan to use" in table and "1 left out" in table
    result = actions.run(session, model, QUESTION, LIMITS)["current"]
    assert result.scan_names == ["AX_T1"] and any("AX_T2 was left out" in note for note in result.notes)
    accepted = actions.verdict_of(session, "current", model, ["not-raw"])
    assert set(accepted.usable) == {"AX_T1", "AX_T2"}
    question = actions.Question(QUESTION.prompts, accept=frozenset(["not-raw"]))
    assert len(actions.run(session, model, question, LIMITS)["current"].scans) == 2
    assert model.processor.image_processor.accept == (), "the shared processor is as it was"
    upload(sessions, session, model, write_negative(sessions))
    with pytest.raises(ValueError, match="no scan of the current study can be used: .*not-raw"):
        actions.run(session, model, QUESTION, LIMITS)


@pytest.mark.parametrize(
    ("name", "content"), [("t1.nii.gz", b"no nifti"), ("x.exe", b"MZ"), ("s.zip", b"PK"), ("a.dcm", b"")]
)
def test_bad_files_are_told(models, sessions, session, name, content):
    (sessions.uploads / name).write_bytes(content)
    with pytest.raises((OSError, ValueError), match="."):
        upload(sessions, session, models["brain"], sessions.uploads / name)
    assert session.slots["current"].opened is None and not list(sessions.uploads.iterdir())


def test_runs_end_when_they_are_cancelled_or_take_too_long(models, sessions, session):
    model = models["brain"]
    upload(sessions, session, model, *two_scans(sessions))

    def cancel(part, what):
        if part > 0.3:
            session.stop.set()

    with pytest.raises(StoppedError, match="cancelled"):
        actions.run(session, model, QUESTION, LIMITS, cancel)
    assert not session.slots["current"].encoded and not session.running
    session.stop.clear()
    with pytest.raises(StoppedError, match="took too long"):
        actions.run(session, model, QUESTION, Limits(seconds=1), lambda part, what: time.sleep(0.6))
    actions.run(session, model, QUESTION, LIMITS)
    hooks = [layer._forward_pre_hooks for layer in model.model.vision_model.encoder.layers]
    assert not any(hooks), "the shared model is as it was"


def test_one_run_at_a_time_in_a_session(models, sessions, session):
    model = models["brain"]
    upload(sessions, session, model, *two_scans(sessions))
    refused = []

    def try_again(part, what):
        for work in (
            lambda: actions.run(session, model, QUESTION, LIMITS),
            lambda: actions.clear_study(session, "prior"),
        ):
            with pytest.raises(ValueError, match="a run is under way"):
                work()
            refused.append(1)

    actions.run(session, model, QUESTION, LIMITS, try_again)
    assert len(refused) > 4


def test_two_sessions_at_once(models, sessions):
    """In two threads: each gets the scores of its own study."""
    model, found = models["brain"], {}

    def use(name, seed):
        session = sessions.of(name)
        upload(sessions, session, model, *two_scans(sessions, seed))
        found[name] = actions.run(session, model, QUESTION, LIMITS)["current"]

    threads = [threading.Thread(target=use, args=(name, seed)) for name, seed in (("one", 10), ("two", 20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, seed in (("one", 10), ("two", 20)):
        session = sessions.of(f"{name} again")
        upload(sessions, session, model, *two_scans(sessions, seed))
        again = actions.run(session, model, QUESTION, LIMITS)["current"]
        assert [one.score for one in again.findings] == pytest.approx(
            [one.score for one in found[name].findings], abs=1e-6
        )
    assert found["one"].findings[0].score != found["two"].findings[0].score


def test_a_folder_of_studies(models, sessions, session, tmp_path):
    """Studies are chosen by names of the list; a path that leads out of the folder is none of them."""
    model = models["brain"]
    secret = write_nifti(tmp_path / "secret" / "AX_T1.nii.gz").parent
    for study in ("s1", "s2"):
        write_nifti(tmp_path / "studies" / study / "AX_T1.nii.gz")
    (tmp_path / "studies" / "s3").symlink_to(secret, target_is_directory=True)
    folder = tmp_path / "studies"
    assert actions.choose_study(session, "current", folder, "s1", model).name == "s1"
    actions.run(session, model, QUESTION, LIMITS)
    for name in ("../secret", "s3", "..", str(secret), "s1/../../secret", ""):
        with pytest.raises(ValueError, match="holds no such study"):
            actions.choose_study(session, "current", folder, name, model)
    assert (folder / "s1" / "AX_T1.nii.gz").exists()
    sessions.end("tab")
    assert (folder / "s1" / "AX_T1.nii.gz").exists(), "the server's studies stay"


def test_a_study_of_a_server_and_its_results(models, sessions, session, tmp_path):
    """Sent to Orthanc, fetched by the app, scored, and the results stored beside it."""
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    pytest.importorskip("dicomweb_client")
    from dicom_files import STUDY_UID, make_grid, make_series, save
    from orthanc import orthanc

    from itemized_clip_hf.data.dicomweb import send
    from itemized_clip_hf.explain.dicom import write_dicom

    model = models["brain"]
    sent = save(make_series(make_grid("oblique", slices=14, size=(40, 44), distance=6.0), "MR"), tmp_path / "sent")
    with orthanc(tmp_path / "server") as url:
        send(url, sorted(sent.iterdir()))
        opened = actions.fetch_dicomweb(session, "current", url, f" {STUDY_UID} ", model, LIMITS)
        assert opened.from_dicom and opened.name == STUDY_UID
        with pytest.raises(ValueError, match="run the findings first"):
            actions.store_results(session, url)
        result = actions.run(session, model, QUESTION, LIMITS)["current"]
        count = actions.store_results(session, url)
        assert count == len(write_dicom(tmp_path / "again", result))
        again = sessions.of("somebody else")
        actions.fetch_dicomweb(again, "current", url, STUDY_UID, model, LIMITS)
        stored = read_all(url)
        with pytest.raises(ValueError, match="no study|not a|expected"):
            actions.fetch_dicomweb(again, "current", url, "../1.2.3", model, LIMITS)
    originals = {str(pydicom.dcmread(path).SOPInstanceUID) for path in sent.iterdir()}
    assert len(stored) == len(originals) + count and {one.StudyInstanceUID for one in stored} == {STUDY_UID}
    (report,) = [one for one in stored if one.Modality == "SR"]
    cited = {
        str(image.ReferencedSOPInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for image in series.ReferencedSOPSequence
    }
    assert originals & cited and cited <= {str(one.SOPInstanceUID) for one in stored}


def read_all(url):
    """All objects of the server's study, as it gives them back."""
    from dicom_files import STUDY_UID
    from dicomweb_client.api import DICOMwebClient

    return DICOMwebClient(url).retrieve_study(STUDY_UID)


def test_html_of_people_and_files_is_text(models, sessions, session):
    nasty = "<img src=x onerror=alert(1)>"
    model = models["brain"]
    opened = upload(
        sessions, session, model, write_dicom_zip(sessions.uploads / "mr.zip", SeriesDescription=f"T1 {nasty}")
    )
    opened.name = f"study {nasty}"
    verdict = actions.verdict_of(session, "current", model)
    question = actions.Question({f"finding {nasty}": [f"</script><script>alert(2)</script>{nasty}"]})
    results = actions.run(session, model, question, LIMITS)
    ranked = actions.describe_place(
        session, "current", {"scan": 0, "mm": results["current"].peak(0, 0).tolist()}, nasty, models, LIMITS
    )
    shown = verdict_table(opened, verdict) + result_table(results) + text_table(ranked, nasty)
    assert "<img" not in shown and "<script" not in shown and "&lt;img" in shown


def test_models_without_attention_and_no_models():
    model, processor = tiny_brain()
    model = copy.deepcopy(model)
    model.config.scoring = "global"
    with pytest.raises(ValueError, match="old: this model was trained by an objective of global embeddings"):
        load_models({"old": (model, processor)})
    with pytest.raises(ValueError, match="needs a model"):
        load_models({})
    assert torch.is_grad_enabled()


def test_findings_and_banks(models):
    domain = models["brain"].prompts
    assert actions.read_findings("  \n", models["brain"], LIMITS) == domain
    assert actions.read_findings("a\n b \na", models["brain"], LIMITS) == {"a": ["a"], "b": ["b"]}
    assert actions.read_bank("", models["brain"], LIMITS) == list(
        dict.fromkeys(t for ts in domain.values() for t in ts)
    )
    with pytest.raises(ValueError, match="3 texts, expected 2 at most"):
        actions.read_bank("a\nb\nc", models["brain"], Limits(bank=2))
