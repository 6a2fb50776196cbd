"""Whole training runs in several processes: DDP, FSDP2, restarts, epochs that do not divide, and processes that are lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import reference_ranks
import torch
from processes import HERE, OWN, build_trainer, finish, fixed_draws, launch, run
from transformers.integrations import is_deepspeed_available

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPTrainingArguments
from itemized_clip_hf.trainer.losses.functional import draw_keep_mask, draw_negatives

FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2}}


def one_process(folder, world, steps=3):
    """Parameters after the same steps in one process: the mean of the ranks' losses, by plain loops, and one optimizer."""
    trainer = build_trainer(folder, OWN, {})
    model, objective = trainer.model.train(), trainer.objective
    weights = {name: getattr(objective, f"{name}_weight") for name in ("ila", "kta", "iis", "mps")}
    batches = [torch.load(folder / f"batches{rank}.pt") for rank in range(world)]
    trainer.create_optimizer_and_scheduler(steps)
    for step in range(steps):
        ranks = []
        for rank in range(world):
            batch = dict(batches[rank][step])
            batch["pixel_values"] = batch["pixel_values"].double()
            features = model(**batch, return_logits=False)
            tokens, generator = features.image_tokens.shape[1], fixed_draws(rank, step)
            studies, slots = batch["item_mask"].shape
            shape = (studies, model.item_pooler.num_heads, studies + slots - 1, tokens)
            masks = [draw_keep_mask(shape, objective.keep_rate, generator) for _ in range(world)]
            ranks.append(
                {
                    "image_embeds": features.image_embeds,
                    "image_tokens": features.image_tokens,
                    "item_embeds": features.item_embeds,
                    "item_mask": batch["item_mask"].bool(),
                    "is_normal": batch["is_normal"],
                    "token_mask": batch["scan_mask"].bool().repeat_interleave(tokens // batch["scan_mask"].shape[1], 1),
                    "keep_mask": masks,
                    "negatives": draw_negatives(batch["item_mask"], generator),
                }
            )
        results = reference_ranks.itemized_clip(
            ranks,
            model.logit_scale.exp(),
            model.logit_bias,
            model.item_pooler,
            weights,
            objective.key_token_rate,
            objective.worst_positive_factor,
        )
        (sum(result["loss"] for result in results).sum() / world).backward()
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()
    return dict(model.named_parameters())


def largest_difference(state, expected):
    return max((state[name] - parameter.detach()).abs().max().item() for name, parameter in expected.items())


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_data_parallel_run_is_one_process(tmp_path, world):
    run(world, tmp_path, record=True)
    expected = one_process(tmp_path, world)
    state = torch.load(tmp_path / "final.pt")
    fresh = dict(build_trainer(tmp_path, OWN, {}).model.named_parameters())
    assert largest_difference(state, fresh) > 1e-3
    assert largest_difference(state, expected) < 1e-8


@pytest.mark.slow
def test_sharded_run(tmp_path):
    """FSDP2: the parameters of data parallel training, and a saved folder with the outputs of the sharded model."""
    run(2, tmp_path / "whole")
    run(2, tmp_path / "sharded", save=True, save_strategy="steps", save_steps=2, **FSDP2)
    whole, sharded = (torch.load(tmp_path / kind / "final.pt") for kind in ("whole", "sharded"))
    assert set(whole) == set(sharded)
    assert largest_difference(sharded, whole) < 1e-8
    batch, scores = torch.load(tmp_path / "sharded" / "outputs.pt")
    model, report = ItemizedCLIPModel.from_pretrained(
        tmp_path / "sharded" / "model", output_loading_info=True, dtype=torch.double
    )
    assert not any(report.values()), report
    config = json.loads((tmp_path / "sharded" / "model" / "config.json").read_text())
    assert config["architectures"] == ["ItemizedCLIPModel"]
    assert config["auto_map"]["AutoModel"] == "modeling_itemized_clip.ItemizedCLIPModel"
    assert (tmp_path / "sharded" / "model" / "modeling_itemized_clip.py").exists()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits_per_image, scores)
    losses = json.loads((tmp_path / "sharded" / "losses0.json").read_text())
    # A sharded run goes on from its checkpoint.
    run(2, tmp_path / "sharded", resume=str(tmp_path / "sharded" / "checkpoint-2"), **FSDP2)
    assert json.loads((tmp_path / "sharded" / "losses0.json").read_text()) == losses
    assert largest_difference(torch.load(tmp_path / "sharded" / "final.pt"), sharded) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("die_after", [3, 5], ids=["within an epoch", "between epochs"])
def test_restart_continues_the_curve(tmp_path, die_after):
    """Bitwise, with the draws of each rank: scans, items, negatives, token masks and dropped paths."""
    settings = {
        "double": False,
        "fixed": False,
        "drop_path_rate": 0.2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    run(2, tmp_path / "whole", **settings)
    started = launch(2, tmp_path / "broken", die_after=die_after, **settings)
    assert finish(started, tmp_path / "broken") == [9, 9]
    run(2, tmp_path / "broken", resume=True, **settings)
    for rank in range(2):
        expected, got = (
            json.loads((tmp_path / kind / f"losses{rank}.json").read_text()) for kind in ("whole", "broken")
        )
        assert len(expected) == 6 and expected == got
    expected, got = (torch.load(tmp_path / kind / "final.pt") for kind in ("whole", "broken"))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.slow
def test_epochs_that_do_not_divide(tmp_path):
    """Seven studies in batches of three: both processes get two full batches, the last filled up from the first studies."""
    run(
        2,
        tmp_path,
        studies=7,
        evaluated=5,
        record=True,
        max_steps=-1,
        num_train_epochs=2,
        dataloader_drop_last=False,
        per_device_eval_batch_size=2,
    )
    for rank in range(2):
        batches = torch.load(tmp_path / f"batches{rank}.pt")
        sizes = [len(batch["input_ids"]) for batch in batches]
        assert sizes[:4] == [3] * 4, sizes
    metrics = [json.loads((tmp_path / f"metrics{rank}.json").read_text()) for rank in range(2)]
    assert metrics[0]["eval_loss"] == metrics[1]["eval_loss"] > 0


@pytest.mark.slow
def test_uneven_batches_are_refused(tmp_path):
    started = launch(2, tmp_path, accelerator_config={"even_batches": False})
    assert 0 not in finish(started, tmp_path)
    assert "even_batches: false" in (tmp_path / "rank0.log").read_text()


@pytest.mark.parametrize(
    "lost, how",
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
    ids=["rank 1 killed", "rank 0 killed", "rank 1 hangs", "rank 0 hangs"],
)
def test_lost_process_ends_the_other(tmp_path, lost, how):
    started = launch(2, tmp_path, max_steps=100_000, ddp_timeout=15, logging_strategy="no")
    try:
        end = time.monotonic() + 120
        steps = tmp_path / "step0"
        while not (steps.exists() and steps.read_text() and int(steps.read_text()) >= 3):
            assert time.monotonic() < end and all(process.poll() is None for process in started)
            time.sleep(0.2)
        os.kill(started[lost].pid, how)
        other = 1 - lost
        code = started[other].wait(60)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
    said = (tmp_path / f"rank{other}.log").read_text()
    known = f"rank {lost} has ended" if how == signal.SIGKILL else "none of them is known to have ended"
    assert code != 0
    assert f"rank {other} of 2: another process of the run ended or hangs ({known})" in said, said[-3000:]
    assert "last checkpoint" in said


def test_other_errors_keep_their_words():
    from itemized_clip_hf.trainer.lost_process import is_collective_error

    assert not is_collective_error(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_collective_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"))
    assert is_collective_error(
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    )
    assert is_collective_error(RuntimeError("Timed out waiting 15000ms for recv operation to complete"))
    assert is_collective_error(torch.distributed.DistBackendError("NCCL communicator was aborted on rank 1."))


def test_deepspeed_is_asked_for_by_name(tmp_path):
    if is_deepspeed_available():
        pytest.skip("deepspeed is installed")
    with pytest.raises(ImportError, match="pip install deepspeed"):
        ItemizedCLIPTrainingArguments(output_dir=str(tmp_path), deepspeed={"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize("as_file", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_deepspeed_config_is_completed_from_the_arguments(tmp_path, as_file):
    """With a distribution of that name in place of the real one: reading the configuration calls nothing of it."""
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text('__version__ = "0.18.2"')
    (tmp_path / "deepspeed-0.18.2.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.2\n"
    (tmp_path / "deepspeed-0.18.2.dist-info" / "METADATA").write_text(metadata)
    config = {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": "auto",
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
    }
    (tmp_path / "zero2.json").write_text(json.dumps(config))
    script = (
        "import json, sys\n"
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(HERE.parents[1])!r}]\n"
        "from itemized_clip_hf import ItemizedCLIPTrainingArguments\n"
        f"given = {str(tmp_path / 'zero2.json') if as_file else config!r}\n"
        f"args = ItemizedCLIPTrainingArguments(output_dir={str(tmp_path)!r}, use_cpu=True, deepspeed=given,\n"
        "    per_device_train_batch_size=3)\n"
        "print(json.dumps([args.hf_deepspeed_config.config, args.deepspeed_plugin.zero_stage]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    completed, stage = json.loads(done.stdout.splitlines()[-1])
    optimizer = {"lr": 1.75e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.2}
    assert stage == 2 and completed["train_micro_batch_size_per_gpu"] == 3 and completed["gradient_clipping"] == 0
    assert completed["optimizer"]["params"] == optimizer
