"""Training arguments as scripts read them: by HfArgumentParser, and where several processes share a machine without a GPU."""

import pytest
import torch
from transformers import HfArgumentParser

from itemized_clip_hf import ItemizedCLIPTrainingArguments
from itemized_clip_hf.trainer.supervised.arguments import SupervisedArguments
from itemized_clip_hf.trainer.training_args import stay_on_cpu


@pytest.mark.parametrize("arguments", [ItemizedCLIPTrainingArguments, SupervisedArguments])
def test_the_library_s_parser_reads_them(arguments, tmp_path):
    line = ["--output_dir", str(tmp_path), "--lora", '{"preset": "both", "rank": 4}', "--accept", "not-hu", "spacing"]
    (read,) = HfArgumentParser(arguments).parse_args_into_dataclasses([*line, "--report_to", "none", "--use_cpu"])
    assert read.lora == {"preset": "both", "rank": 4} and read.accept == ["not-hu", "spacing"] and read.report_to == []


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without an accelerator")
def test_several_processes_without_a_gpu_stay_on_the_cpu(tmp_path, monkeypatch):
    """tests/test_examples.py trains by two of them."""
    args = SupervisedArguments(output_dir=str(tmp_path))
    stay_on_cpu(args)
    assert not args.use_cpu
    monkeypatch.setenv("WORLD_SIZE", "2")
    stay_on_cpu(args)
    assert args.use_cpu
