"""The tiny variant of every recipe: a model that trains in seconds on whatever the recipe trains on."""

import json

import numpy as np
import pytest

from itemized_clip_hf.domains import load_domain
from itemized_clip_hf.recipes import available_recipes, load_recipe
from itemized_clip_hf.trainer.run import train_recipe

ITEMS = [["left frontal mass.", "no bleed."], ["bleed in the right lobe."], ["nodule.", "effusion."], ["a road."]]


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """A list of four studies of every domain."""
    nibabel = pytest.importorskip("nibabel")
    folder = tmp_path_factory.mktemp("studies")
    rng = np.random.default_rng(0)
    shapes = {"brain-mri": (40, 44, 20), "head-ct": (40, 44, 20), "chest-ct": (48, 40, 40)}
    found = {}
    for domain in ("brain-mri", "head-ct", "chest-ct", "remote-sensing", "natural-images"):
        rows = []
        for number, items in enumerate(ITEMS):
            path = folder / f"{domain}-{number}.{'nii.gz' if domain in shapes else 'png'}"
            if domain in shapes:
                nibabel.save(volume(nibabel, rng, shapes[domain], ct=domain != "brain-mri"), path)
            else:
                Image = pytest.importorskip("PIL.Image")
                Image.fromarray(rng.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(path)
            images = {"T1": path.name} if domain == "brain-mri" else path.name
            rows.append(json.dumps({"id": str(number), "images": images, "items": items}))
        found[domain] = folder / f"{domain}.jsonl"
        found[domain].write_text("\n".join(rows) + "\n")
    return found


def volume(nibabel, rng, shape, ct: bool):
    """A ball in air: of noise, or in HU."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    noise = rng.normal(size=shape)
    values = np.where(inside, 40 + 30 * noise, -1000) if ct else np.where(inside, 500 + 100 * noise, 0)
    spacing = [240 / n for n in shape]
    affine = np.diag([*spacing, 1.0])
    image = nibabel.Nifti1Image(values.astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    return image


@pytest.mark.parametrize("name", available_recipes())
def test_two_steps(name, lists, tmp_path):
    recipe = load_recipe(name).variant("tiny")
    trainer = train_recipe(
        recipe, lists[recipe.domain], tmp_path / "run", max_steps=2, per_device_train_batch_size=2, report_to=[]
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == 2 and np.isfinite(losses).all()
    assert trainer.studies_left_out == 0 and trainer.model.num_parameters() < 3e6
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", available_recipes())
def test_prepared_data_of_the_domain_fits(name):
    """What is prepared for the recipe, or for its domain, is prepared for its tiny variant."""
    from itemized_clip_hf.data.studies.prepared import prepared_fields

    recipe = load_recipe(name)
    tiny = recipe.variant("tiny")
    own = prepared_fields({**load_domain(recipe.domain).image, **recipe.image})
    small = prepared_fields({**load_domain(recipe.domain).image, **tiny.image})
    assert small == own
