"""The folder of a Space: what it holds, that it goes to the Hub, and that it answers."""

import ast
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from click.testing import CliRunner
from groups import free_port
from loopback_hub import LoopbackHub

from itemized_clip_cli import main
from itemized_clip_hf.hub.space import push_space, write_space

pytest.importorskip("gradio")
TITLE = 'Brain "MRI" <b>'


def front_matter(folder) -> dict:
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_what_a_space_of_a_model_folder_holds(model_folder, tmp_path):
    import gradio

    wheel = tmp_path / "itemized_clip_hf-9.9-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    place = tmp_path / "space"
    asked = ["-m", str(model_folder), "-o", str(place), "--title", TITLE, "--license", "mit", "--wheel", str(wheel)]
    done = CliRunner().invoke(main, ["space", *asked])
    assert done.exit_code == 0, done.output
    assert (place / "requirements.txt").read_text() == f"./{wheel.name}[app,dicom-compressed]\n"
    assert (place / wheel.name).read_bytes() == b"a wheel"
    assert {"config.json", "model.safetensors", "processor_config.json"} <= {
        p.name for p in (place / "model").iterdir()
    }
    head = front_matter(place)
    assert (head["title"], head["license"], head["sdk"], head["app_file"]) == (TITLE, "mit", "gradio", "app.py")
    assert head["sdk_version"] == gradio.__version__ and "models" not in head
    (call,) = [node for node in ast.walk(ast.parse((place / "app.py").read_text())) if isinstance(node, ast.Dict)]
    assert ast.literal_eval(call) == {model_folder.resolve().name: "model"}


def test_what_a_space_of_a_model_on_the_hub_holds(tmp_path):
    write_space(tmp_path / "s", "org/brain@v1", license="mit")
    head = front_matter(tmp_path / "s")
    assert head["models"] == ["org/brain"] and head["title"] == "brain" and not (tmp_path / "s" / "model").exists()
    assert "'brain': 'org/brain@v1'" in (tmp_path / "s" / "app.py").read_text()
    assert (tmp_path / "s" / "requirements.txt").read_text().startswith("itemized-clip-hf[app,dicom-compressed]==")


def test_refusals(model_folder, tmp_path):
    with pytest.raises(ValueError, match="states the license of its model"):
        write_space(tmp_path / "s", "org/brain")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    with pytest.raises(ValueError, match="is not empty"):
        write_space(tmp_path / "full", str(model_folder), license="mit")
    with pytest.raises(ValueError, match="neither a folder nor ORG/NAME"):
        write_space(tmp_path / "s", "untrained:brain-mri", license="mit")
    with pytest.raises(FileNotFoundError, match="no wheel"):
        write_space(tmp_path / "s", "org/brain", license="mit", wheel=tmp_path / "no.whl")
    with pytest.raises(ValueError, match=r"is not a Space: it has no app\.py"):
        push_space(model_folder, "org/space")
    place = write_space(tmp_path / "s", "org/brain", license="mit")
    with pytest.raises(ValueError, match="does not name a Space"):
        push_space(place, "space")
    with (place / "README.md").open("a") as card:
        card.write("\nPatientName: Doe^Jane\n")
    with pytest.raises(ValueError, match="may be patient data"):
        push_space(place, "org/space")
    done = CliRunner().invoke(main, ["push", "--space", "--license", "mit", str(place), "org/space"])
    assert done.exit_code == 2 and "do not go with --space" in done.output


def test_a_space_goes_to_the_hub(model_folder, tmp_path):
    place = write_space(tmp_path / "space", str(model_folder), license="mit")
    (place / "scores.csv").write_text("left here")
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "cache")}
        code = "import itemized_clip_cli; itemized_clip_cli.main()"
        asked = ["push", "--space", str(place), "org/brain-app", "--private"]
        done = subprocess.run([sys.executable, "-c", code, *asked], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        repo = hub.repos["spaces/org/brain-app"]
        assert repo.private and {"app.py", "README.md", "requirements.txt", "model/model.safetensors"} <= set(
            repo.files
        )
        assert "scores.csv" not in repo.files
        assert repo.files["app.py"] == (place / "app.py").read_bytes()
        assert f"{hub.endpoint}/spaces/org/brain-app" in done.stdout


def answer_of(place, python: str, environment: dict[str, str]) -> str:
    """The page that the Space's own app serves, started as the Hub starts it."""
    port = free_port()
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "PYTHONUNBUFFERED": "1"}
    running = subprocess.Popen(
        [python, "app.py"], cwd=place, env={**environment, **settings}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(600):
            assert running.poll() is None, running.stdout.read().decode()[-3000:]
            try:
                with urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    return answer.read().decode()
            except OSError:
                time.sleep(0.2)
        raise AssertionError("it did not answer within two minutes")
    finally:
        running.kill()
        running.wait()


def test_its_app_is_made_of_its_model(model_folder, tmp_path, monkeypatch):
    place = write_space(tmp_path / "space", str(model_folder), "Brain MRI here", "mit")
    monkeypatch.chdir(place)
    demo = runpy.run_path("app.py")["demo"]
    try:
        assert demo.title == "Brain MRI here"
    finally:
        demo.sessions.close()


@pytest.mark.slow
def test_it_answers(model_folder, tmp_path):
    place = write_space(tmp_path / "space", str(model_folder), "Brain MRI here", "mit")
    package = str(Path(__file__).parents[2])
    assert "Brain MRI here" in answer_of(place, sys.executable, {**os.environ, "PYTHONPATH": package})


@pytest.mark.slow
def test_it_needs_nothing_but_its_requirements(model_folder, tmp_path):
    """A new environment with a wheel of the package, and what the Space asks for."""
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(root)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    place = write_space(tmp_path / "space", str(model_folder), "Brain MRI here", "mit", wheel)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pins = ["-c", str(root / "constraints.txt")]  # the Space resolves freely; here torch has to be the one without CUDA
    subprocess.run(
        [python, "-m", "pip", "install", "-q", *pins, "-r", "requirements.txt"], cwd=place, env=environment, check=True
    )
    assert "Brain MRI here" in answer_of(place, python, environment)
