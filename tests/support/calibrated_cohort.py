"""A model and studies with labels that its scores tell, but for noise."""

import csv
import json
import shutil

import numpy as np
from tiny_models import ITEMS

PROMPTS = {"mass": ITEMS[0], "rare": ITEMS[1]}


def write_cohort(folder, model_folder, count=32, damaged=7):
    """`model`, `data` with a label table (id, mass, rare, sex), `prompts.json` and `own.yaml`; one study is damaged."""
    import nibabel

    from itemized_clip_hf.evaluation.zero_shot import score_studies
    from itemized_clip_hf.models.load import load

    shutil.copytree(model_folder, folder / "model")
    rng = np.random.default_rng(0)
    names, paths = [f"case{number:03}" for number in range(count)], []
    for name in names:
        paths.append(folder / "data" / name / "T1.nii.gz")
        paths[-1].parent.mkdir(parents=True)
        image = rng.normal(200, 30, (16, 16, 8)) + 40 * rng.random() * np.linspace(-1, 1, 8)
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.diag([-12.0, 12, 20, 1])), paths[-1])
    model, processor = load(folder / "model", "cpu")
    _, table = score_studies(model, processor, [{"T1": str(path)} for path in paths], list(PROMPTS.values()))
    own = table[:, 0]
    if damaged is not None:
        paths[damaged].write_bytes(b"\x1f\x8bdamaged")
    with (folder / "data" / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "mass", "rare", "sex"])
        for number, name in enumerate(names):
            positive = own[number] + own.std() * rng.normal() > np.median(own)
            writer.writerow([name, int(positive), int(number < 3), "FM"[number % 2]])
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    (folder / "own.yaml").write_text(json.dumps({"title": "Own", "findings": PROMPTS}))
