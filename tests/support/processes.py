"""Training runs in plain processes, without a launcher that would end the group itself."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from groups import free_port
from tiny_models import TRAINING, leave_group

from itemized_clip_hf.trainer.gather import world_size

HERE = Path(__file__).parent


def launch(world: int, folder, **settings) -> list[subprocess.Popen]:
    """Starts `run_rank` on every rank; what a rank says is in `FOLDER/rankR.log`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    script = (
        f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]\n"
        "from processes import run_rank; run_rank(sys.argv[1], sys.argv[2])\n"
    )
    shared = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
    started = []
    for rank in range(world):
        own = shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1}
        if world == 1:
            own = {"OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1}
        with (folder / f"rank{rank}.log").open("w") as log:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", script, str(folder), json.dumps(settings)],
                    env={**os.environ, **{name: str(value) for name, value in own.items()}},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return started


def finish(started: list[subprocess.Popen], folder, timeout: float = 300) -> list[int]:
    """Exit codes; ends what still runs after the time-out."""
    end = time.monotonic() + timeout
    try:
        return [process.wait(max(0.1, end - time.monotonic())) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()


def run(world: int, folder, timeout: float = 300, **settings) -> None:
    """A run that has to succeed."""
    codes = finish(launch(world, folder, **settings), folder, timeout)
    logs = "\n".join((Path(folder) / f"rank{rank}.log").read_text()[-3000:] for rank in range(world))
    assert codes == [0] * world, f"{codes}\n{logs}"


def fixed_draws(rank: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * rank + step)


def build_trainer(folder, own: dict, settings: dict):
    """A tiny trainer in float64 whose draws depend on rank and step alone, and which records its batches."""
    from tiny_models import ITEMS, tiny_config
    from trainers import dataset
    from transformers import TrainerCallback

    from itemized_clip_hf import (
        ItemizedCLIPModel,
        ItemizedCLIPProcessor,
        ItemizedCLIPTrainer,
        ItemizedCLIPTrainingArguments,
    )
    from itemized_clip_hf.models.tokenizer import train_tokenizer
    from itemized_clip_hf.trainer.gather import rank
    from itemized_clip_hf.trainer.objectives.itemized_clip import ItemizedCLIPObjective

    torch.set_num_threads(1)
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=train_tokenizer(ITEMS, 120, 24), scan_size=[8, 16, 16], in_plane_size=16
    )

    class FixedDraws(ItemizedCLIPObjective):
        def __call__(self, *args, **kwargs):
            tokens = kwargs["image_tokens"].shape[1]
            generator = fixed_draws(rank(), trainer.state.global_step)
            kwargs["draws"] = self.draw(kwargs["item_mask"], tokens, kwargs["pooler"].num_heads, generator)
            return super().__call__(*args, **kwargs)

    class Recorder(ItemizedCLIPTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if own["record"]:
                batches.append({name: x.clone() for name, x in inputs.items()})
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            (folder / f"step{rank()}").write_text(str(state.global_step))
            if state.global_step == own["die_after"]:
                os._exit(9)

    batches: list[dict] = []
    torch.manual_seed(0)
    model = ItemizedCLIPModel(
        tiny_config(attention_scopes=["scan", "scan", "study"], drop_path_rate=own["drop_path_rate"])
    )
    defaults = {**TRAINING, "max_steps": 3, "per_device_train_batch_size": 3}
    args = ItemizedCLIPTrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    trainer = Recorder(
        model.double() if own["double"] else model,
        args,
        train_dataset=dataset(own["studies"]),
        eval_dataset=dataset(own["evaluated"], seed=1) if own["evaluated"] else None,
        processing_class=processor,
        objective=FixedDraws() if own["fixed"] else None,
    )
    trainer.add_callback(Stop())
    trainer.batches, trainer.dtype = batches, model.dtype
    return trainer


def shard_on_cpu() -> None:
    """accelerate shards on accelerators only: lets it take the same way on CPUs."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    init = AcceleratorState.__init__

    def init_sharded(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init_sharded


def record_outputs(trainer, path: Path) -> None:
    """What the trained model, sharded or not, makes of some studies."""
    from trainers import dataset

    batch = trainer.data_collator(dataset(3, seed=2))
    batch["pixel_values"] = batch["pixel_values"].to(trainer.dtype)
    with torch.no_grad():
        scores = trainer.model_wrapped.eval()(**batch).logits_per_image
    if trainer.args.process_index == 0:
        torch.save((batch, scores), path / "outputs.pt")


OWN = {
    "record": False,
    "die_after": 0,
    "drop_path_rate": 0.0,
    "double": True,
    "fixed": True,
    "studies": 24,
    "evaluated": 0,
    "resume": False,
    "save": False,
}


def run_rank(folder: str, settings: str) -> None:
    """Trains as `settings` say; leaves batches, losses and final parameters in the folder."""
    given = json.loads(settings)
    own = {name: given.pop(name, default) for name, default in OWN.items()}
    path = Path(folder)
    if given.get("fsdp"):
        shard_on_cpu()
    trainer = build_trainer(path, own, given)
    trainer.train(resume_from_checkpoint=own["resume"] or None)
    rank = trainer.args.process_index
    if own["record"]:
        torch.save(trainer.batches, path / f"batches{rank}.pt")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    (path / f"losses{rank}.json").write_text(json.dumps(losses))
    if own["evaluated"]:
        (path / f"metrics{rank}.json").write_text(json.dumps(trainer.evaluate()))
    if own["save"]:
        trainer.save_model(str(path / "model"))
        record_outputs(trainer, path)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if rank == 0:
        torch.save({name.removeprefix("module."): x for name, x in state.items()}, path / "final.pt")
    if world_size() > 1:
        leave_group()
