"""The verb `app`: what is told before anything is loaded, and a server that ends in order."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from groups import free_port

from itemized_clip_cli import main
from itemized_clip_hf.models.names import split_name


def refused(*arguments, **variables):
    done = CliRunner().invoke(main, ["app", *map(str, arguments)], env=variables)
    assert done.exit_code != 0
    return " ".join(done.output.split())


def test_what_cannot_work_is_told_at_once(tmp_path, model_folder):
    assert "there is no model folder" in refused("-m", f"brain={tmp_path}/none")
    assert "is no model folder" in refused("-m", tmp_path)
    assert "expected NAME=MODEL" in refused("-m", f"={model_folder}")
    assert "does not exist" in refused("-m", model_folder, "--folder", tmp_path / "none")
    assert "1<=x<=65535" in refused("-m", model_folder, "--port", 0)
    assert "x>=1" in refused("-m", model_folder, "--max-upload-mb", 0)
    (tmp_path / "password").write_text("\nsecond line")
    assert "holds no password" in refused("-m", model_folder, "--password-file", tmp_path / "password")
    asked = ("-m", model_folder, "--password-file", tmp_path / "password", "--password", "x")
    assert "not both" in refused(*asked)
    assert "model is given" in refused("-m", f"a={model_folder}", "-m", f"a={model_folder}")


def test_names_of_models(tmp_path):
    assert split_name("org/brain@v1") == ("brain@v1", "org/brain@v1")
    assert split_name("brain = x") == ("brain ", " x")
    (tmp_path / "a=b").mkdir()
    assert split_name(str(tmp_path / "a=b")) == ("a=b", str(tmp_path / "a=b"))
    with pytest.raises(ValueError, match="expected NAME=MODEL"):
        split_name("brain=")


@pytest.mark.slow
def test_the_command_serves_and_leaves_nothing(model_folder, tmp_path):
    """A real process: it answers with the password of its environment alone, and an interrupt deletes all it held."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("gradio")
    port = free_port()
    environment = {**os.environ, "ITEMIZED_CLIP_APP_PASSWORD": "geheim", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "itemized_clip_cli", "app", "-m", f"brain={model_folder}", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = server.stdout.readline()
        while line and "the app is at" not in line:
            line = server.stdout.readline()
        url = f"http://127.0.0.1:{port}/"
        assert url in line, "it ended before it listened"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, auth=("anybody", "geheim")).status_code == 200
        answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"hello")}, auth=("x", "geheim"))
        assert Path(answer.json()[0]).read_text() == "hello" and list(tmp_path.glob("itemized-clip-app-*"))
    finally:
        server.send_signal(signal.SIGTERM)
        left = time.monotonic() + 20
        while server.poll() is None and time.monotonic() < left:
            time.sleep(0.1)
        server.kill()
    assert server.returncode == 143 and not list(tmp_path.glob("itemized-clip-app-*"))
