"""An index of a cohort's global embeddings for quick, approximate search: FAISS, through `datasets`."""

import hashlib
import importlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import whole_file, write_text
from .file import Cohort

EXTRA = "search"
SHARE = 32
"""One list of this many is looked through; `benchmarks/search.py` measures what that finds."""
LEAST_LISTS = 8
"""That are looked through."""
NAME = "embedding"


def import_faiss() -> tuple[Any, Any]:
    """
    `datasets` and `faiss`.

    Raises:
        ImportError: they are not installed.
    """
    try:
        return importlib.import_module("datasets"), importlib.import_module("faiss")
    except ImportError:
        raise ImportError(f"an index needs FAISS: pip install 'itemized-clip-hf[{EXTRA}]'.") from None


def factory_of(studies: int) -> str:
    """
    Of FAISS: embeddings kept whole, in lists around centers, about 4 times the root of their number.

    >>> factory_of(100_000), factory_of(50)
    ('IVF1024,Flat', 'IVF1,Flat')
    """
    wanted = min(4 * math.sqrt(studies), studies / 39)  # FAISS wants 39 embeddings for each center
    return f"IVF{2 ** round(math.log2(max(wanted, 1)))},Flat"


class CohortIndex:
    """
    Approximate search for the cosine of global embeddings.

    Args:
        cohort: whose embeddings are searched.
        path: of the index, which is made where there is none; a JSON file beside it says what it is of. In memory if None.
        factory: as FAISS takes it, see `factory_of`.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: the index at that place is of other embeddings, or of another kind.
    """

    def __init__(self, cohort: Cohort, path: str | os.PathLike[str] | None = None, factory: str | None = None):
        datasets, faiss = import_faiss()
        self.path = None if path is None else Path(path)
        self.factory = factory = factory or factory_of(len(cohort))
        described = {"embeddings": fingerprint(cohort), "factory": factory}
        self._dataset = datasets.Dataset.from_dict({"id": cohort.ids})
        if self.path is None or not self.path.exists():
            self._build(cohort, faiss, factory)
            if self.path is not None:
                self._write(described)
        else:
            self._require(described)
            self._dataset.load_faiss_index(NAME, str(self.path))
        index = self._dataset.get_index(NAME).faiss_index
        if hasattr(index, "nprobe"):
            index.nprobe = max(index.nlist // SHARE, LEAST_LISTS)

    def _build(self, cohort: Cohort, faiss: Any, factory: str) -> None:
        with without_bars():
            self._dataset.add_faiss_index_from_external_arrays(
                cohort.directions,
                NAME,
                string_factory=factory,
                metric_type=faiss.METRIC_INNER_PRODUCT,
                train_size=len(cohort),
            )

    def _write(self, described: dict[str, str]) -> None:
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path) as temporary:
            self._dataset.save_faiss_index(NAME, str(temporary))
        write_text(_facts_of(self.path), json.dumps(described) + "\n")

    def _require(self, described: dict[str, str]) -> None:
        assert self.path is not None
        facts = _facts_of(self.path)
        if not facts.exists() or json.loads(facts.read_text(encoding="utf-8")) != described:
            raise ValueError(
                f"{self.path} is not the index of this cohort: name another file, or delete it to have it made again."
            )

    def search(self, directions: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Args:
            directions: (Q, P), of length 1.
            top: results of each.

        Returns:
            cosines (Q, top), best first, and rows (Q, top); -1 where fewer were found.
        """
        found = self._dataset.search_batch(NAME, np.ascontiguousarray(directions, np.float32), k=top)
        return np.asarray(found.total_scores), np.asarray(found.total_indices)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of `datasets`, which count batches of a thousand; afterwards all is as before."""
    datasets, _ = import_faiss()
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def fingerprint(cohort: Cohort) -> str:
    """SHA-256 of ids and embeddings."""
    digest = hashlib.sha256(json.dumps(cohort.ids).encode())
    digest.update(np.ascontiguousarray(cohort.embeddings).tobytes())
    return digest.hexdigest()


def _facts_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
