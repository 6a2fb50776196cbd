"""Convert, load, predict and explain where no connection can be made, and none is tried."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from sources import TEXT, VISION, source, tokenizer_of_size, training_dictionary

BLOCK = """
import socket
def refuse(*arguments, **settings):
    with open({log!r}, "a") as file:
        file.write(repr(arguments) + "\\n")
    raise OSError("there is no network here")
socket.getaddrinfo = socket.create_connection = refuse
connect = socket.socket.connect
socket.socket.connect = lambda self, address: connect(self, address) if isinstance(address, str) else refuse(address)
"""


def alone() -> list[str]:
    """A prefix for commands that takes the network's interfaces away, where the machine allows it."""
    tool = shutil.which("unshare")
    if tool and subprocess.run([tool, "-rn", "true"], capture_output=True).returncode == 0:
        return [tool, "-rn"]
    return []


def test_without_a_network(tmp_path, write_volume):
    pytest.importorskip("matplotlib")
    state, domain, config = source("volumes")
    torch.save(training_dictionary(state), tmp_path / "c.pt")
    sizes = {"projection_dim": config.projection_dim, "num_pooler_heads": config.num_pooler_heads}
    for part, names in (("vision_config", VISION), ("text_config", TEXT)):
        sizes[part] = {name: getattr(config, part).to_dict()[name] for name in names}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    tokenizer_of_size(config.text_config.vocab_size).save_pretrained(tmp_path / "words")
    write_volume("study/chest.nii.gz", torch.randn(60, 60, 40).mul(300).numpy().astype("int16"))
    (tmp_path / "block").mkdir()
    log = tmp_path / "attempts"
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK.format(log=str(log)))
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    environment |= {"PYTHONPATH": str(tmp_path / "block"), "HF_HOME": str(tmp_path / "home")}

    def run(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run([*alone(), *command], capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def command_line(*arguments):
        return run("-m", "itemized_clip_cli", *arguments)

    command_line(*f"convert -i c.pt --domain {domain} -o model --config sizes.json --tokenizer words".split())
    load = "import itemized_clip_hf; from transformers import AutoModel, AutoProcessor; "
    run("-c", load + "AutoModel.from_pretrained('model'); AutoProcessor.from_pretrained('model')")
    asked = "-m model -i study -p word1 --accept not-hu".split()
    scored = json.loads(command_line("predict", *asked, "--json"))
    assert -1 <= scored["results"][0]["scores"]["word1"] <= 1
    command_line("explain", *asked, "-o", "maps")
    assert list((tmp_path / "maps").rglob("*.png")) and list((tmp_path / "maps").rglob("*.nii.gz"))
    assert not log.exists(), f"tried to connect: {log.read_text()}"
    probe = subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('pypi.org', 443))"],
        env=environment,
        capture_output=True,
    )
    assert probe.returncode != 0 and log.exists(), "the block does not block"
