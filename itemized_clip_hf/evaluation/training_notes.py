"""Notes where studies of an evaluation were trained on."""

import os

from transformers.utils import logging

from ..data.studies.records import Records
from ..data.studies.training_ids import ids_of, warn_of_training
from ..modeling.modeling_itemized_clip import ItemizedCLIPModel

logger = logging.get_logger(__name__)


def trained_on_notes(model: ItemizedCLIPModel, folder: str | os.PathLike | None, ids: list[str]) -> list[str]:
    """
    A note, and a warning, where studies of the evaluation were trained on.

    Args:
        folder: that tells which studies the model was trained on; where it was loaded from if None.
    """
    note = warn_of_training(folder or model.config.name_or_path, ids)
    if note is not None:
        logger.warning(note)
    return [note] if note is not None else []


def task_notes(model: ItemizedCLIPModel, folder: str | os.PathLike | None, records: Records) -> dict[str, list[str]]:
    """`notes` of a task's results; nothing where there is nothing to say."""
    notes = trained_on_notes(model, folder, ids_of(records))
    return {"notes": notes} if notes else {}
