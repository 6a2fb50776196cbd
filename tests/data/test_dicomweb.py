"""Studies of a DICOMweb server, against Orthanc on loopback, and against servers that lie."""

import contextlib
import gc
import http.server
import pickle
import sys
import threading

import numpy as np
import pytest
from dicom_files import SECRETS, STUDY_UID, make_grid, make_series, make_uid, save
from orthanc import orthanc

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dicomweb_client")

from itemized_clip_hf.data.dicomweb import fetch_study, is_study_url, open_study_url, send, split_study_url
from itemized_clip_hf.data.readers.read import read_file


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With one study of two series, and its files."""
    folder = tmp_path_factory.mktemp("orthanc")
    files = [*make_series(make_grid(slices=5), "MR"), *make_series(make_grid("sagittal", slices=5), "CT")]
    save(files, folder / "sent")
    with orthanc(folder / "server") as url:
        assert send(url, sorted((folder / "sent").iterdir())) == 10
        yield url, folder / "sent"


def test_a_study_comes_back_as_it_was_sent(server, tmp_path):
    url, sent = server
    fetched = fetch_study(url, STUDY_UID, tmp_path / "study")
    expected, found = (
        {one.SOPInstanceUID: one for one in map(pydicom.dcmread, place.iterdir())} for place in (sent, fetched)
    )
    assert len(found) == 10 and found == expected


def test_the_address_of_a_study_is_read_as_its_folder(server):
    """The temporary folder is there for what is read again, and no longer."""
    url, sent = server
    study = read_file(f"{url}/studies/{STUDY_UID}")
    expected = read_file(sent)
    assert set(study.scans) == set(expected.scans) and study.id == STUDY_UID
    for name, scan in study.scans.items():
        np.testing.assert_array_equal(scan.array, expected.scans[name].array)
        assert scan.instances == expected.scans[name].instances
    place = scan.place.path
    assert len(list(place.iterdir())) == 10
    assert pickle.loads(pickle.dumps(scan)).place == place
    del study, scan
    gc.collect()
    assert not place.exists()


def test_limits_are_kept(server, tmp_path):
    """What was written before is taken away again: half a study would be read as a whole one."""
    url, sent = server
    for limits, message in (({"max_files": 9}, "more than 9 images"), ({"max_bytes": 5000}, "more than 5,000 bytes")):
        with pytest.raises(ValueError, match=message):
            fetch_study(url, STUDY_UID, tmp_path / "study", **limits)
        assert not list((tmp_path / "study").iterdir())


def test_what_is_not_there_is_said(server, tmp_path):
    url, _ = server
    with pytest.raises(ValueError, match="has no such study"):
        fetch_study(url, make_uid(), tmp_path / "study")
    other = make_uid()
    (report,) = make_series(make_grid(slices=1), "MR", StudyInstanceUID=other, Modality="SR")
    save([report], tmp_path / "report")
    send(url, (tmp_path / "report").iterdir())
    with pytest.raises(ValueError, match="no CT or MR images.*1 series are of modality SR"):
        fetch_study(url, other, tmp_path / "study")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        fetch_study(url, STUDY_UID, tmp_path / "full")
    (tmp_path / "text.dcm").write_text("no")
    with pytest.raises(ValueError, match="text.dcm is not a DICOM file"):
        send(url, [tmp_path / "text.dcm"])


def test_the_server_of_these_tests_answers_nobody_else(server):
    """Orthanc cannot listen on loopback alone: it sends others away."""
    import socket
    import urllib.request

    import psutil

    own = [one.address for links in psutil.net_if_addrs().values() for one in links if one.family == socket.AF_INET]
    outer = [address for address in own if not address.startswith("127.")]
    if not outer:
        pytest.skip("this machine has no address besides loopback")
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{server[0].replace('127.0.0.1', outer[0])}/studies", timeout=10)


def test_credentials_come_from_the_environment_and_are_not_shown(tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level(0)
    save(make_series(make_grid(slices=3), "MR"), tmp_path / "sent")
    with orthanc(tmp_path / "server", users={"reader": "wörd:secret"}) as url:
        with pytest.raises(OSError, match="status 401: set ITEMIZED_CLIP_DICOMWEB_AUTH"):
            send(url, (tmp_path / "sent").iterdir())
        monkeypatch.setenv("ITEMIZED_CLIP_DICOMWEB_AUTH", "reader:wörd:secret")
        assert send(url, (tmp_path / "sent").iterdir()) == 3
        fetch_study(url, STUDY_UID, tmp_path / "study")
        with pytest.raises(OSError, match="status 401") as refused:
            fetch_study(url, STUDY_UID, tmp_path / "other", auth="reader:wrong")
    shown = capfd.readouterr()
    said = shown.out + shown.err + caplog.text + str(refused.value)
    assert not [word for word in ("secret", "cmVhZGVy", "wrong", *SECRETS) if word in said]


@contextlib.contextmanager
def serve(answers):
    """A server that gives (content type, bytes) by the last part of a path, and keeps the headers that it was sent."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(dict(self.headers))
            kind, body = answers.get(self.path.split("?")[0].rsplit("/", 1)[1], (None, b""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.end_headers()
            with contextlib.suppress(OSError):
                for block in body if not isinstance(body, bytes) else [body]:
                    self.wfile.write(block)

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/dicom-web", seen
        finally:
            listening.shutdown()


SERIES = b'[{"0020000E": {"Value": ["1.2.3"]}, "00080060": {"Value": ["MR"]}}]'


@pytest.mark.parametrize(
    "answers, message",
    [
        ({}, "status 404"),
        ({"series": ("application/json", b"<html>")}, "not DICOMweb"),
        ({"series": ("application/json", b'[{"0020000E": {"Value": ["../../etc"]}}]')}, "is not a UID"),
        ({"series": ("application/json", b"[[]]")}, "damaged, or not DICOMweb"),
        (
            {
                "series": ("application/json", SERIES),
                "1.2.3": ("multipart/related; boundary=x", b"--x\r\n\r\nno\r\n--x--"),
            },
            "damaged, or not DICOMweb",
        ),
        (
            {
                "series": ("application/json", SERIES),
                "1.2.3": ("multipart/related; boundary=x", (b"0" * (1 << 20) for _ in range(1 << 40))),
            },
            "sends more than 8,388,608 bytes",
        ),
    ],
)
def test_servers_that_lie(answers, message, tmp_path):
    """The last one never ends."""
    with serve(answers) as (url, _), pytest.raises((ValueError, OSError), match=message):
        fetch_study(url, "1.2.840.1", tmp_path / "study", max_bytes=8 << 20)
    assert not list((tmp_path / "study").iterdir())


def test_tokens_and_silence(tmp_path):
    with serve({"series": ("application/json", b"[]")}) as (url, seen):
        with pytest.raises(ValueError, match="no such study"):
            fetch_study(url, "1.2.840.1", tmp_path / "study", auth="Bearer abc")
    assert {headers["Authorization"] for headers in seen} == {"Bearer abc"}
    with pytest.raises(OSError, match=r"at http://127.0.0.1:\d+/dicom-web cannot be reached"):
        fetch_study(url, "1.2.840.1", tmp_path / "study")


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://host/dicom-web", "expected http.*/studies/UID"),
        ("http://host/dicom-web/studies/", "does not name a study"),
        ("http://host/dicom-web/studies/Mustermann", "not a UID"),
        ("http://host/dicom-web/studies/1.2/series/3", "not a UID"),
        ("http://user:geheim@host/dicom-web/studies/1.2.3", "set ITEMIZED_CLIP_DICOMWEB_AUTH"),
        ("http://host/dicom-web?token=geheim/studies/1.2.3", "goes on behind its path"),
        ("http:///studies/1.2.3", "not the address"),
        ("http://host:port/studies/1.2.3", "not the address"),
    ],
)
def test_addresses_that_name_no_study(url, message):
    assert is_study_url(url)
    with pytest.raises(ValueError, match=message) as error:
        split_study_url(url)
    assert "geheim" not in str(error.value) and "Mustermann" not in str(error.value)


def test_addresses_of_studies():
    assert split_study_url("https://host:8443/a/dicom-web/studies/1.2.3/") == ("https://host:8443/a/dicom-web", "1.2.3")
    assert not is_study_url("studies/1.2.3") and not is_study_url(None)


def test_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "dicomweb_client", None)
    with pytest.raises(ImportError, match=r"pip install 'itemized-clip-hf\[dicomweb\]'"):
        open_study_url("http://127.0.0.1:1/studies/1.2.3")
    with pytest.raises(ImportError, match="dicomweb"):
        send("http://127.0.0.1:1", [])
