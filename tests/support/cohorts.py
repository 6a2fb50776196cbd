"""Generated studies as records, for cohorts."""

from itemized_clip_hf.phantom import PhantomDataset
from itemized_clip_hf.phantom.experiment import as_scans

PROMPTS = {"mass": ["left frontal mass", "a mass"], "bleed": ["small bleed in the right parietal lobe"]}


def phantom_records(count: int = 7, seed: int = 0, split: str = "test") -> list[dict]:
    """Studies of 8 x 16 x 16 voxels with labels, one of which is unknown in the first and missing in the second."""
    records = []
    for study in PhantomDataset(split, count, seed=seed, shape=(8, 16, 16)):
        records.append({"id": study.id, "images": as_scans(study), "labels": dict(study.labels)})
    records[0]["labels"]["mass"] = None
    if count > 1:
        del records[1]["labels"]["cyst"]
    return records
