"""The folder of a Space: what it holds, that it goes to the Hub, and that it answers."""

import ast
import os
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner
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
