"""Tokenizers without a download: from a folder, from the vocabulary files of BERT and CLIP, or learned from the items."""

import gzip
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_CLIP_MERGES = 49152 - 256 - 2


def _bert_like(tokenizer: Tokenizer, context_length: int) -> PreTrainedTokenizerFast:
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "attention_mask"],
    )


def train_tokenizer(items: Iterable[str], vocab_size: int = 4096, context_length: int = 77) -> PreTrainedTokenizerFast:
    """
    A WordPiece tokenizer (lower-casing, `[CLS]` ... `[SEP]`) whose vocabulary is learned from the items.

    The vocabulary is the special tokens, every character alone and as a continuation, and the most frequent words; rarer words
    are spelled. The same items give the same vocabulary, in any process.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words: Counter[str] = Counter()
    for item in items:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(item)))
    characters = sorted({character for word in words for character in word})
    tokens = [*_SPECIAL, *characters, *(f"##{character}" for character in characters)]
    common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    tokens += common[: max(vocab_size - len(tokens), 0)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return _bert_like(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")), context_length)


def load_tokenizer(path: str | os.PathLike, context_length: int = 512) -> PreTrainedTokenizerFast:
    """
    Args:
        path: a folder with tokenizer files, a BERT `vocab.txt`, or CLIP's merges (`bpe_simple_vocab_16e6.txt.gz`).
        context_length: longest item in tokens; a folder that allows less keeps its own.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no tokenizer at {path}.")
    if path.is_dir():
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        tokenizer.model_max_length = min(tokenizer.model_max_length, context_length)
        return tokenizer
    if path.suffix == ".gz":
        return _clip_tokenizer(path, context_length)
    vocabulary = {line.rstrip("\n"): i for i, line in enumerate(path.open(encoding="utf-8"))}
    missing = [token for token in _SPECIAL[:4] if token not in vocabulary]
    if missing:
        raise ValueError(f"{path.name} is no BERT vocabulary: it lacks {missing}.")
    return _bert_like(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")), context_length)


def _clip_tokenizer(path: Path, context_length: int) -> PreTrainedTokenizerFast:
    """CLIP's byte-level pairs: 256 bytes, the same as word ends, the merges, start and end."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _CLIP_MERGES + 1]
    merges = [(parts[0], parts[1]) for parts in (line.split() for line in lines) if len(parts) == 2]
    if len(merges) != _CLIP_MERGES:
        raise ValueError(f"{path.name} holds {len(merges)} merges, CLIP's file has {_CLIP_MERGES}.")
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = alphabet + [a + "</w>" for a in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary, merges, end_of_word_suffix="</w>", unk_token="<|endoftext|>", continuing_subword_prefix=""
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_clip_pattern(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[(token, vocabulary[token]) for token in ("<|startoftext|>", "<|endoftext|>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=context_length,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",  # the released code pads with id 0, which is "!"; behind the end nothing is read
        model_input_names=["input_ids", "attention_mask"],
    )


def _clip_pattern():
    return Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
