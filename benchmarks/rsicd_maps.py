"""Heat maps of prompts and captions on RSICD test images: the first images of some classes, nothing chosen by hand.

python benchmarks/rsicd_maps.py runs/rsicd/seed-0 --data ../shared/data/rsicd -o runs/rsicd/maps.png
"""

import argparse
import io
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from itemized_clip_hf.explain.maps import explain_study
from itemized_clip_hf.models.load import load

CLASSES = {
    "Airport": "the airport",
    "StorageTanks": "the storage tanks",
    "River": "the river",
    "Stadium": "the stadium",
    "BaseballField": "the baseball field",
    "Beach": "the beach",
    "Bridge": "the bridge",
    "Port": "the port",
}
CAPTIONS = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="folder with test.parquet")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--images", type=int, default=1, help="of each class")
    parser.add_argument("--skip", type=int, default=0, help="images of each class to pass over")
    arguments = parser.parse_args()
    model, processor = load(arguments.model)
    columns = ["image", "label", "captions_unique"]
    rows = pq.read_table(Path(arguments.data) / "test.parquet", columns=columns).to_pylist()
    stop = arguments.skip + arguments.images
    chosen = [row for label in CLASSES for row in [r for r in rows if r["label"] == label][arguments.skip : stop]]
    figure, axes = plt.subplots(
        len(chosen), 2 + CAPTIONS, figsize=(3 * (2 + CAPTIONS), 3.3 * len(chosen)), layout="constrained", squeeze=False
    )
    for line, row in zip(axes, chosen):
        picture = Image.open(io.BytesIO(row["image"])).convert("RGB")
        items = [CLASSES[row["label"]], *row["captions_unique"][:CAPTIONS]]
        line[0].imshow(picture)
        line[0].set_title(row["label"], fontsize=9)
        for axis, heat in zip(line[1:], explain_study(model, processor, picture, items)):
            axis.imshow(np.asarray(picture.convert("L")), cmap="gray")
            axis.imshow(heat.values, cmap="inferno", alpha=0.55, vmin=0)
            title = f"{heat.item} (up to {heat.values.max():.1f} x mean)"
            axis.set_title("\n".join(textwrap.wrap(title, 42)), fontsize=8)
        for axis in line:
            axis.axis("off")
    Path(arguments.output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=80)


if __name__ == "__main__":
    main()
