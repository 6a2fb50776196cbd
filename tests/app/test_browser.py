"""A person's path through the app in a real browser: upload, verdict, findings, run, table, viewer, places, files."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from apps import served, tiny_brain, tiny_pictures, write_dicom_zip, write_nifti, write_picture
from browser import open_browser
from PIL import Image
from tiny_models import ITEMS

pytest.importorskip("gradio")
nibabel = pytest.importorskip("nibabel")
pytest.importorskip("matplotlib")

from itemized_clip_hf.app.settings import AppSettings, Limits

WAIT = 30_000  # ms


@pytest.fixture(scope="module")
def chromium():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory, chromium):
    """One app with two models and a folder of studies, which outlives whatever the tests give to it."""
    folder = tmp_path_factory.mktemp("studies")
    for study in ("anna", "ben"):
        write_nifti(folder / study / "AX_T1.nii.gz", len(study))
    settings = AppSettings(folder=folder, limits=Limits(upload_mb=8, idle_minutes=5))
    with served({"brain": tiny_brain(), "aerial": tiny_pictures()}, settings) as (url, app):
        yield url, app


class Tab:
    """A page of the app, which notes whatever it should not do."""

    def __init__(self, chromium, url):
        self.context = chromium.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
        self.page = self.context.new_page()
        self.hosts, self.errors = set(), []
        self.page.on(
            "request", lambda request: self.hosts.add(request.url.split("/")[2] if "//" in request.url else "")
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.goto(url)
        self.page.get_by_role("button", name="Run", exact=True).wait_for(timeout=WAIT)
        self.url = url

    def upload(self, *files, slot="current"):
        self.page.set_input_files(f"#files-{slot} input[type=file]", [str(file) for file in files])
        shown = self.page.locator(f"#verdict-{slot} :is(.ic-study, .ic-message)")
        shown.first.wait_for(timeout=WAIT)
        return self.page.locator(f"#verdict-{slot}").inner_text()

    def run(self, *findings):
        self.page.get_by_label("Findings, one per line").fill("\n".join(findings))
        self.page.evaluate("document.querySelectorAll('#status p').forEach((line) => { line.className = ''; })")
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.locator("#status :is(.ic-done, .ic-error)").wait_for(timeout=WAIT)
        return self.page.locator("#status").inner_text()

    def viewer(self, slot="current"):
        frame = self.page.frame_locator(f"#viewer-{slot} iframe")
        frame.locator("html[data-ready=yes]").wait_for(timeout=WAIT)
        self.page.locator(
            f"#viewer-{slot} iframe"
        ).scroll_into_view_if_needed()  # browsers draw little of what is not seen
        return frame

    def picture(self, slot="current"):
        self.page.wait_for_timeout(300)
        shot = self.viewer(slot).locator("#stage canvas").first.screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), float)

    def choose(self, finding):
        """The row of a finding in the page's table; the viewer goes there."""
        self.viewer()
        self.page.locator("#results tr[data-finding]", has_text=finding).click()
        self.viewer().locator(f"html[data-shown^='{self.number_of(finding)}:']").wait_for(timeout=WAIT)

    def number_of(self, finding):
        return self.page.locator("#results tr[data-finding]", has_text=finding).get_attribute("data-finding")

    def click_place(self, x=0.45, y=0.5):
        if self.viewer().locator("#view").is_visible():
            self.viewer().locator("#view").select_option("axial")
        canvas = self.viewer().locator("#stage canvas").first
        box = canvas.bounding_box()
        canvas.click(position={"x": x * box["width"], "y": y * box["height"]})
        self.page.locator("#texts table").wait_for(timeout=WAIT)
        rows = self.page.locator("#texts tbody tr").all_inner_texts()
        return {text: float(score) for text, score in (row.split("\t") for row in rows)}

    def scores(self):
        rows = self.page.locator("#results tbody tr").all_inner_texts()
        return {cells[0]: float(cells[1]) for cells in (row.split("\t") for row in rows)}

    def fetch(self, what) -> bytes:
        with self.page.expect_download(timeout=WAIT) as waiting:
            self.page.locator("#files a", has_text=what).first.click()
        return Path(waiting.value.path()).read_bytes()

    def check(self):
        """No request left for another host, and nothing went wrong in the page."""
        assert self.hosts - {""} == {self.url.split("/")[2]} and not self.errors


@pytest.fixture
def open_tab(chromium, server):
    tabs = []

    def make():
        tabs.append(Tab(chromium, server[0]))
        return tabs[-1]

    yield make
    for tab in tabs:
        tab.context.close()


def require_different(one, other):
    assert one.shape == other.shape and (np.abs(one - other).max(-1) > 20).mean() > 0.001


def require_not_blank(picture):
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50 and picture.std() > 5


def test_volumes(open_tab, tmp_path):
    tab = open_tab()
    files = [write_nifti(tmp_path / name, n) for n, name in enumerate(("AX_T1.nii.gz", "AX_FLAIR.nii.gz"))]
    verdict = tab.upload(*files)
    assert "2 scans to use" in verdict and "AX_FLAIR" in verdict and "12 × 48 × 44" in verdict
    assert tab.run(*ITEMS[:3]) == "3 findings scored."
    assert set(tab.scores()) == set(ITEMS[:3]) and "not calibrated" in tab.page.locator("#results").inner_text()
    tab.choose(ITEMS[0])
    first = tab.picture()
    require_not_blank(first)
    tab.choose(ITEMS[1])
    require_different(first, tab.picture())
    told = json.loads(tab.fetch("JSON"))
    assert {one["label"]: round(one["score"], 3) for one in told["findings"]} == tab.scores()
    rows = list(csv.DictReader(io.StringIO(tab.fetch("CSV").decode())))
    assert len(rows) == 6 and {row["calibrated"] for row in rows} == {"no"}
    archive = zipfile.ZipFile(io.BytesIO(tab.fetch("NIfTI heat maps")))
    assert len(archive.namelist()) == 6
    name = next(name for name in archive.namelist() if name.startswith("01_") and "T1" in name)
    heat = nibabel.Nifti1Image.from_stream(gzip.GzipFile(fileobj=archive.open(name)))
    np.testing.assert_allclose(heat.affine, nibabel.load(files[0]).affine, atol=1e-4)
    voxel = np.unravel_index(heat.get_fdata().argmax(), heat.shape)
    (peak,) = [scan["peak"] for scan in told["findings"][1]["scans"] if scan["name"] == "AX_T1"]
    np.testing.assert_allclose((heat.affine @ [*voxel, 1])[:3], peak, atol=1.0)
    report = tab.fetch("HTML report").decode()
    assert ITEMS[2] in report and "Research only" in report
    check_places(tab)
    tab.check()


def check_places(tab):
    """A click in the viewer; the place that is told is the one that the viewer shows."""
    tab.page.get_by_text("Texts that a place is compared with").click()
    tab.page.get_by_label("Texts, one per line").fill("\n".join(ITEMS[:3]))
    ranked = tab.click_place()
    assert set(ranked) == set(ITEMS[:3]) and list(ranked.values()) == sorted(ranked.values(), reverse=True)
    shown = tab.viewer().locator("#place").inner_text().split(" mm")[0]
    assert f"at {shown} mm (RAS)" in tab.page.locator("#texts").inner_text()
    tab.page.evaluate("window.postMessage({kind: 'itemized-clip-place', scan: 0, mm: [0, 0, 0]}, '*')")
    tab.page.wait_for_timeout(500)
    assert f"at {shown} mm (RAS)" in tab.page.locator("#texts").inner_text(), "only the viewer is listened to"


def test_a_picture(open_tab, tmp_path):
    tab = open_tab()
    tab.page.get_by_label("Model").click()
    tab.page.get_by_role("option", name="aerial").click()
    assert "40 × 48" in tab.upload(write_picture(tmp_path / "field.png"))
    tab.run(*ITEMS[:3])
    tab.choose(ITEMS[0])
    first = tab.picture()
    require_not_blank(first)
    tab.choose(ITEMS[1])
    require_different(first, tab.picture())
    assert tab.click_place(0.5, 0.5) and "row 50%, column 50%" in tab.page.locator("#texts").inner_text()
    assert json.loads(tab.fetch("JSON"))["findings"][0]["label"] == ITEMS[0]
    assert tab.page.locator("#files a", has_text="NIfTI").count() == 0
    tab.check()


def test_a_bad_file_and_a_dicom_zip(open_tab, tmp_path):
    """The bad file is told, and the app goes on; names of files, headers and findings stay texts."""
    tab = open_tab()
    (tmp_path / "<b>x.nii.gz").write_bytes(b"no nifti")
    assert "The study cannot be used" in tab.upload(tmp_path / "<b>x.nii.gz")
    assert "there is no study" in tab.run(ITEMS[0])
    nasty = "<img src=x onerror=alert(1)>"
    good = write_dicom_zip(tmp_path / f"{nasty[:4]}.zip", SeriesDescription=f"AX T1 {nasty}")
    tab.page.set_input_files("#files-current input[type=file]", [str(good)])
    tab.page.locator("#verdict-current .ic-study", has_text="1 scan to use").wait_for(timeout=WAIT)
    tab.run(f"{nasty}</script><script>alert(2)</script>", "${alert(3)} {{alert(4)}}")
    assert nasty in tab.page.locator("#results").inner_text()
    require_not_blank(tab.picture())
    tab.click_place()
    assert len(zipfile.ZipFile(io.BytesIO(tab.fetch("NIfTI heat maps"))).namelist()) == 2
    check_dicom(tab.fetch("DICOM"), good)
    tab.check()


def check_dicom(content: bytes, source: Path):
    """Maps, report and pictures are of the source's patient and study."""
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")

    def read(archive):
        opened = zipfile.ZipFile(archive)
        return [pydicom.dcmread(io.BytesIO(opened.read(name))) for name in opened.namelist()]

    made, (first, *_) = read(io.BytesIO(content)), read(source)
    assert {one.StudyInstanceUID for one in made} == {first.StudyInstanceUID}
    assert {one.PatientID for one in made} == {first.PatientID} and {"SR"} < {one.Modality for one in made}
    assert not {one.SOPInstanceUID for one in made} & {first.SOPInstanceUID}


@pytest.mark.slow  # what it shows is looked at in test_actions, the page in the tests above
def test_prior_and_current_side_by_side(open_tab):
    """Two studies of the server's folder: scores, differences, and two viewers that follow the table."""
    tab = open_tab()
    tab.page.get_by_text("Prior study, to compare with").click()
    for slot, study in (("current", "anna"), ("prior", "ben")):
        box = tab.page.locator(f"#study-{slot}")
        box.get_by_role("tab", name="Folder").click()
        box.get_by_label("Study on the server").click()
        tab.page.get_by_role("option", name=study).click()
        box.locator(".ic-study", has_text=study).wait_for(timeout=WAIT)
    tab.run(*ITEMS[:2])
    rows = [row.split("\t") for row in tab.page.locator("#results tbody tr").all_inner_texts()]
    assert all(
        float(now) - float(before) == pytest.approx(float(change), abs=2e-3) for _, now, before, change, _ in rows
    )
    tab.choose(ITEMS[1])
    for slot in ("current", "prior"):
        tab.viewer(slot).locator("html[data-shown^='1:']").wait_for(timeout=WAIT)
        require_not_blank(tab.picture(slot))
    assert tab.page.locator("#files a", has_text="JSON").count() == 2
    tab.check()


def test_two_people(open_tab, server, tmp_path):
    """Neither sees the other's study, and who leaves takes everything along."""
    one, two = open_tab(), open_tab()
    one.upload(write_nifti(tmp_path / "a" / "AX_T1.nii.gz", 1))
    two.upload(write_nifti(tmp_path / "b" / "AX_FLAIR.nii.gz", 2))
    one.run(ITEMS[0])
    two.run(ITEMS[0])
    assert one.scores() != two.scores()
    assert "AX_FLAIR" not in one.page.content() and "AX_T1" not in two.page.content()
    address = one.page.locator("#files a", has_text="JSON").get_attribute("href")
    folders = {session.folder for session in server[1].sessions.known.values() if session.slots["current"].opened}
    assert len(folders) >= 2 and not list(server[1].sessions.uploads.rglob("*.gz"))
    assert two.page.request.get(server[0] + address).status == 200, "whoever has the address has the file"
    one.context.close()
    for _ in range(100):
        if two.page.request.get(server[0] + address).status == 404:
            break
        two.page.wait_for_timeout(200)
    assert two.page.request.get(server[0] + address).status == 404
    assert two.fetch("JSON")
