"""What stands before the page: over HTTP, as anybody could ask, without a browser."""

import base64
import os
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from apps import served, tiny_brain

pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
psutil = pytest.importorskip("psutil")

from itemized_clip_hf.app.guard import is_served
from itemized_clip_hf.app.session import ServedFile
from itemized_clip_hf.app.settings import AppSettings, Limits


def listening() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections("inet")
    return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def app():
    before = listening()
    with served({"brain": tiny_brain()}, AppSettings(limits=Limits(upload_mb=8, stored_mb=64))) as (url, blocks):
        yield url, blocks, listening() - before


def test_it_listens_on_this_machine_alone(app):
    url, _, opened = app
    assert opened == {("127.0.0.1", urlsplit(url).port)}


def test_the_page_may_talk_to_no_other_host(app):
    answer = httpx.get(app[0])
    assert answer.status_code == 200
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'" and policy["connect-src"] == "'self' data: blob:"
    assert not [word for words in policy.values() for word in words.split() if "//" in word or word == "*"]
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    config = httpx.get(f"{app[0]}config").json()
    assert config["analytics_enabled"] is False and not config.get("run_history")


def test_nothing_else_is_served(app, tmp_path):
    """Files by path, proxies, other people's calls by name, monitoring."""
    url, blocks, _ = app
    session = blocks.sessions.of("somebody")
    secret = session.new_folder("current") / "scan.nii"
    secret.write_text("voxels")
    (tmp_path / "own.txt").write_text("of the server")
    with httpx.Client() as client:
        arrived = client.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"hello")}).json()[0]
        assert Path(arrived).is_relative_to(blocks.sessions.uploads)
        for path in (str(secret), arrived, str(tmp_path / "own.txt"), "/etc/passwd", "http://127.0.0.1:1/"):
            for call in ("gradio_api/file=", "gradio_api/file/", "file=", "gradio_api/proxy=", "proxy="):
                assert client.get(f"{url}{call}{path}").status_code == 404, (call, path)
        for path in ("monitoring", "monitoring/summary", "gradio_api/runs", "gradio_api/openapi.json", "docs", "login"):
            assert client.get(f"{url}{path}").status_code == 404, path
        for name in ("predict", "take", "run"):
            assert client.post(f"{url}gradio_api/call/{name}", json={"data": []}).status_code == 404
        for path in (
            "static/../../../../etc/passwd",
            "assets/%2e%2e/%2e%2e/routes.py",
            "static/%2e%2e%2f%2e%2e%2froutes.py",
        ):
            answer = client.get(f"{url}{path}")
            assert answer.status_code in (403, 404) and "import" not in answer.text and "root:" not in answer.text
    blocks.sessions.end("somebody")


def test_files_of_a_session_have_addresses_that_cannot_be_guessed(app, tmp_path):
    url, blocks, _ = app
    session = blocks.sessions.of("one")
    (session.folder / "a.json").write_text("{}")
    address = session.serve(ServedFile("a.json", lambda: session.folder / "a.json", "application/json"))
    answer = httpx.get(url + address)
    assert answer.text == "{}" and answer.headers["content-disposition"] == 'attachment; filename="a.json"'
    assert answer.headers["content-security-policy"] == "sandbox allow-scripts"
    token = address.split("/")[1]
    wrong = ["study-files/", f"study-files/{token}", f"study-files/{token}/", f"study-files/{token}/b.json"]
    wrong += [f"study-files/{token[:-1]}/a.json", "study-files//a.json", f"study-files/{token}/../../etc/passwd"]
    wrong += [f"study-files/{session.folder.name}/a.json"]
    for path in wrong:
        assert httpx.get(url + path).status_code == 404, path
    blocks.sessions.end("one")
    assert httpx.get(url + address).status_code == 404


def test_a_file_that_cannot_be_made_is_told(app):
    url, blocks, _ = app
    session = blocks.sessions.of("one")

    def fail():
        raise ValueError(f"{session.folder}/scan.nii is damaged")

    answer = httpx.get(url + session.serve(ServedFile("a.zip", fail, "application/zip")))
    assert answer.status_code == 500 and answer.text == "the file cannot be made: /scan.nii is damaged"
    blocks.sessions.end("one")


def test_two_gigabytes_that_are_declared_are_refused_at_once(app):
    place = urlsplit(app[0])
    start = time.monotonic()
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        connection.sendall(f"{head}Content-Length: {2 << 30}\r\n\r\n".encode())
        answer = ""
        while "MiB" not in answer and (block := connection.recv(4096)):
            answer += block.decode()
    assert " 413 " in answer and "larger than 9 MiB" in answer and time.monotonic() - start < 5


def test_more_than_is_allowed_ends_where_it_is_too_much(app):
    """A body without a length, and one of many small parts."""
    url, blocks, _ = app

    def body():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(20):
            yield b"\0" * (1 << 20)

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        answer = httpx.post(f"{url}gradio_api/upload", content=body(), headers=kind, timeout=20)
        assert answer.status_code >= 400
    except httpx.HTTPError:
        pass  # the connection was closed
    time.sleep(0.2)
    assert sum(path.stat().st_size for path in blocks.sessions.uploads.rglob("*") if path.is_file()) < 10 << 20
    assert httpx.post(f"{url}gradio_api/queue/join", content=b"x" * (5 << 20)).status_code == 413


def test_uploads_stop_where_the_app_is_full(app):
    url, blocks, _ = app
    session = blocks.sessions.of("full")
    with (session.folder / "large").open("wb") as file:
        file.truncate(65 << 20)
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"hello")})
    assert answer.status_code == 507 and "as much as it may" in answer.text
    blocks.sessions.end("full")


def test_other_pages_cannot_use_it(app):
    """A form on another page, and a frame that is nobody's origin, as that of a report."""
    for origin in ("https://evil.example", "null"):
        answer = httpx.post(
            f"{app[0]}gradio_api/upload", files={"files": ("a.txt", b"hello")}, headers={"Origin": origin}
        )
        assert answer.status_code == 403 and "another page" in answer.text


def test_addresses():
    for path in ("", "config", "assets/x.js", "gradio_api/queue/join", "gradio_api/upload", "gradio_api/heartbeat/abc"):
        assert is_served(path), path
    for path in ("gradio_api/file=/etc/passwd", "gradio_api/uploads", "gradio_api/", "api/predict", "assets/../config"):
        assert not is_served(path), path


def test_a_password():
    def asked(given: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(given.encode()).decode()}

    with served({"brain": tiny_brain()}, AppSettings(password="geheim:ü", hosts=("127.0.0.1",))) as (url, _):
        elsewhere = httpx.get(url, headers={"host": "another.example:7860", "origin": "http://another.example:7860"})
        assert elsewhere.status_code == 403 and "127.0.0.1 only" in elsewhere.text
        for path in ("", "config", "gradio_api/info", "study-files/x/y", "gradio_api/queue/data", "theme.css"):
            assert httpx.get(url + path).status_code == 401, path
        assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a", b"b")}).status_code == 401
        start = time.monotonic()
        assert httpx.get(url, headers=asked("me:wrong")).status_code == 401 and time.monotonic() - start >= 1
        assert httpx.get(url, headers={"Authorization": "Basic %%%"}).status_code == 401
        assert httpx.get(url, headers=asked("anybody:geheim:ü")).status_code == 200
    assert "geheim" not in repr(AppSettings(password="geheim:ü"))


def test_settings(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of studies"):
        AppSettings(folder=tmp_path / "none")
    with pytest.raises(ValueError, match="password is empty"):
        AppSettings(password="")
