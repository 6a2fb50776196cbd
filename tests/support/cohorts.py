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


def write_cohort(path, embeddings, ids=None, model="generated", tokens=None, names=("T1", "T2")):
    """
    A cohort of given embeddings (S, P), without a model.

    Args:
        tokens: (S, scans, D, H, W, P), each token 2 x 4 x 4 voxels of its scan.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from itemized_clip_hf.cohort.file import Cohort, CohortFacts
    from itemized_clip_hf.cohort.rows import finish_labels, table_of

    facts = CohortFacts(
        {"sha256": model, "name": model}, {"sha256": "p"}, embeddings.shape[1], tokens=tokens is not None
    )
    rows = []
    for number, embedding in enumerate(embeddings):
        row = {
            "id": f"s{number}" if ids is None else ids[number],
            "embedding": embedding,
            "labels": None,
            "label": None,
        }
        row |= {"scans": 1, "scans_left_out": 0}
        if tokens is not None:
            shape = tokens[number].shape
            matrix = np.diag([2.0, 4, 4, 1])
            matrix[:3, 3] = [0.5, 1.5, 1.5]  # centers of tokens
            row |= {"tokens": tokens[number].astype(np.float16).ravel(), "token_shape": shape}
            row |= {"scan_names": list(names[: shape[0]]), "token_to_voxel": [matrix.ravel()] * shape[0]}
            row["scan_shapes"] = [[2 * shape[1], 4 * shape[2], 4 * shape[3]]] * shape[0]
        rows.append(row)
    table = finish_labels(table_of(rows, facts), [], False).replace_schema_metadata(facts.metadata())
    pq.write_table(table, path, row_group_size=3)
    return Cohort(path)
