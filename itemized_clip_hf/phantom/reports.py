"""Report sentences: several paraphrases for each finding, some of them kept for the test split."""

from __future__ import annotations

import numpy as np

from .findings import FINDINGS, Placement

NORMAL = "normal"
"""Finding name of the item of a normal study."""

NORMAL_ITEMS = ("no significant abnormalities.", "study is unremarkable.")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "enlarged_ventricles": (
        "{size} enlarged ventricles.",
        "the lateral ventricles are {size} enlarged.",
        "{size} dilated ventricles of the brain.",
        "there is increased size of the lateral ventricles.",
        "ventricles are dilated, consistent with hydrocephalus.",
        "both lateral ventricles of the brain appear enlarged.",
    ),
    "subdural_collection": (
        "{size} subdural collection on the {side}.",
        "there is a subdural collection.",
        "{side} sided crescent shaped subdural collection.",
        "{size} subdural collection along the {side} side of the brain.",
        "a collection is seen in the subdural space of the brain.",
        "{side} subdural fluid collection.",
    ),
    "mass": (
        "{size} mass in the {side} {lobe} lobe.",
        "there is a mass of the brain.",
        "{side} sided mass, {size} in size.",
        "a space occupying mass is seen in the {lobe} lobe.",
        "{size} tumour like mass is seen.",
        "brain mass of {size} size.",
    ),
    "cyst": (
        "{size} cyst in the {side} {lobe} lobe.",
        "there is a cyst of the brain.",
        "{side} sided cyst, {size} in size.",
        "a fluid filled cyst is seen in the {lobe} lobe.",
        "{size} simple cyst is seen.",
        "cyst with fluid signal in the brain.",
    ),
    "bleed": (
        "{size} bleed in the {side} {lobe} lobe.",
        "there is a bleed of the brain.",
        "{side} sided bleed, {size} in size.",
        "a focus of blood products is seen in the {lobe} lobe, in keeping with a bleed.",
        "{size} haemorrhage is seen.",
        "susceptibility from a bleed in the brain.",
    ),
    "white_matter_lesion": (
        "{size} white matter lesion in the {side} {lobe} lobe.",
        "there is a white matter lesion of the brain.",
        "{side} sided white matter lesion, {size} in size.",
        "a hyperintense lesion is seen in the {lobe} white matter.",
        "{size} area of white matter signal change is seen.",
        "flair bright lesion in the white matter.",
    ),
}
"""Sentence templates of each finding; both splits use them."""

HELD_OUT_TEMPLATES: dict[str, tuple[str, ...]] = {
    "enlarged_ventricles": ("there are {size} enlarged ventricles.", "{size} dilated lateral ventricles are seen."),
    "subdural_collection": ("a {size} subdural collection is seen on the {side} side.", "{side} subdural, {size}."),
    "mass": ("the {side} {lobe} lobe contains a {size} mass.", "{size} {side} {lobe} brain mass is seen."),
    "cyst": ("the {side} {lobe} lobe contains a {size} cyst.", "{size} {side} {lobe} brain cyst is seen."),
    "bleed": ("the {side} {lobe} lobe contains a {size} bleed.", "{size} {side} {lobe} brain haemorrhage is seen."),
    "white_matter_lesion": (
        "the {side} {lobe} lobe contains a {size} white matter lesion.",
        "{size} {side} {lobe} lesion of the white matter is seen.",
    ),
}
"""Templates that the training split never uses."""

ZERO_SHOT_PROMPTS: dict[str, str] = {name: finding.prompt for name, finding in FINDINGS.items()}
"""Canonical zero-shot text of each finding; no item is identical to one."""


def write_item(placement: Placement, rng: np.random.Generator, held_out: bool = False) -> str:
    """
    Write the sentence of one finding.

    Args:
        placement: the finding.
        rng: chooses the template.
        held_out: choose among `HELD_OUT_TEMPLATES` as well.
    """
    templates = TEMPLATES[placement.finding]
    if held_out:
        templates += HELD_OUT_TEMPLATES[placement.finding]
    return templates[rng.integers(len(templates))].format(**placement.attributes)


def write_normal_item(rng: np.random.Generator) -> str:
    """Write the only sentence of a normal study."""
    return NORMAL_ITEMS[rng.integers(len(NORMAL_ITEMS))]


def located_prompt(finding: str, side: str, lobe: str | None = None) -> str:
    """
    Name a finding at a place, for example "mass in the left frontal lobe of the brain".

    Args:
        finding: a key of `FINDINGS` that has a side.
        side: "left" or "right".
        lobe: a key of `findings.LOBES`; leave out for a subdural collection.
    """
    name = finding.replace("_", " ")
    if lobe is None:
        return f"{name} on the {side} side of the brain"
    return f"{name} in the {side} {lobe} lobe of the brain"
