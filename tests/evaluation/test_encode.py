"""Studies that threads read ahead: the same results, reports and order as without."""

import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from tiny_models import ITEMS

from itemized_clip_hf import ItemizedCLIPProcessor
from itemized_clip_hf.evaluation.encode import Closed, in_order
from itemized_clip_hf.evaluation.zero_shot import score_studies


def test_any_number_of_threads_gives_the_same(make_model, tokenizer):
    processor = ItemizedCLIPProcessor.from_domain(
        "brain-mri", tokenizer=tokenizer, scan_size=[8, 16, 16], in_plane_size=16
    )
    model = make_model()

    def open_study(number):
        time.sleep(0.01 * (number % 3))  # later ones are ready earlier
        if number == 4:
            raise OSError("damaged")
        scans = {f"AX_{k}": np.random.default_rng(10 * number + k).normal(size=(6, 16, 16)) for k in range(2)}
        return scans | ({"AX_DWI": np.full((4, 8, 8), np.nan)} if number == 6 else {})

    def run(num_workers, autocast=False):
        told = []
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            _, scores = score_studies(
                model,
                processor,
                [Closed(partial(open_study, number)) for number in range(9)],
                ITEMS[:2],
                batch_size=2,
                on_error=lambda number, error: told.append((number, str(error))),
                on_bad_scan=lambda number, scan, error: told.append((number, scan)),
                on_scores=lambda number, row: told.append(number),
                num_workers=num_workers,
            )
        return scores, told

    expected, told = run(0)
    assert (4, "damaged") in told and (6, "AX_DWI") in told
    assert np.isnan(expected).any(axis=1).tolist() == [number == 4 for number in range(9)]
    for scores, said in (run(1), run(3)):
        np.testing.assert_array_equal(scores, expected)
        assert said == told
    np.testing.assert_array_equal(run(0, True)[0], run(2, True)[0])
    with pytest.raises(ValueError, match="number of workers is -1"):
        run(-1)


def test_threads_work_ahead_and_no_further():
    started, asked = [], []
    gate = threading.Semaphore(0)

    def job(number):
        started.append(number)
        gate.acquire()
        return number

    def jobs():
        for number in range(20):
            asked.append(number)
            yield partial(job, number)

    results = in_order(jobs(), 3)
    for _ in range(2):
        gate.release()
    assert next(results) == 0
    assert len(asked) == 4 and set(started) <= set(asked)
    for _ in range(20):
        gate.release()
    results.close()  # what waits is not begun
    assert len(asked) == 4
    assert list(in_order((partial(int, n) for n in range(5)), 2)) == list(in_order(partial(int, n) for n in range(5)))
