"""Distances of studies: even percentiles for studies like the others, the top for those that are not."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from itemized_clip_hf.evaluation.outliers import Distance, unit


def test_percentiles_are_even_for_unseen_studies_and_high_for_others():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(24, 24)) / 5
    center = 3 * rng.normal(size=24)
    studies = unit(center + rng.normal(size=(260, 24)) @ mix)
    cloud = Distance.fit(studies[:130])
    percentiles = cloud.percentile(studies[130:])
    assert 40 < percentiles.mean() < 60 and 0.03 <= (percentiles > 90).mean() <= 0.2
    assert cloud.percentile(unit(-center[None]))[0] == 100
    assert cloud.percentile(unit(rng.normal(size=(50, 24)))).min() > 99
    assert Distance.fit(studies[:19]) is None and cloud.studies == 130


def test_it_is_mahalanobis_of_the_mean_and_precision():
    rng = np.random.default_rng(1)
    studies = unit(rng.normal(size=(60, 5)) + 1)
    cloud = Distance.fit(studies)
    distances = [np.sqrt((x - cloud.mean) @ cloud.precision @ (x - cloud.mean)) for x in studies.astype(float)]
    order = np.argsort(distances)
    assert (np.diff(cloud.percentile(studies)[order]) >= 0).all()
