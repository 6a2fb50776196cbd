"""Files of studies whose label is to be seen: a large bright block or a small one."""

import json
from pathlib import Path

import numpy as np


def write_labeled_studies(folder: Path, count: int = 10, seed: int = 0) -> Path:
    """`studies.jsonl` with volumes, `labels.csv` with `large` and `coin`, `classes.csv` with `label`; the folder."""
    import nibabel

    rng = np.random.default_rng(seed)
    lines, table, classes = [], ["id,large,coin"], ["id,label"]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        large = number % 2
        array = rng.normal(100, 10, (16, 16, 8)).astype(np.float32)
        array[: 10 if large else 2] += 200
        nibabel.save(nibabel.Nifti1Image(array, np.diag([4.0, 4.0, 6.0, 1.0])), folder / f"s{number}.nii.gz")
        lines.append(json.dumps({"id": f"s{number}", "images": {"AX_T1": f"s{number}.nii.gz"}}))
        table.append(f"s{number},{large},{rng.integers(2)}")
        classes.append(f"s{number},{'large' if large else 'small'}")
    (folder / "studies.jsonl").write_text("\n".join(lines))
    (folder / "labels.csv").write_text("\n".join(table))
    (folder / "classes.csv").write_text("\n".join(classes))
    return folder
