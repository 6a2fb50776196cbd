"""Public name of `models.tokenizer`."""

from ..models.tokenizer import load_tokenizer, train_tokenizer

__all__ = ["load_tokenizer", "train_tokenizer"]
