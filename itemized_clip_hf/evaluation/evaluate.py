"""Public name of `evaluation.protocols.run`."""

from .protocols.images import open_record
from .protocols.run import Evaluation, evaluate_protocol

__all__ = ["Evaluation", "evaluate_protocol", "open_record"]
