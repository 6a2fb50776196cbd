"""What a score is: the similarity of a study and a prompt, its logit, the sigmoid of that, or a calibrated probability."""

import numpy as np
import torch

from ..modeling.modeling_itemized_clip import ItemizedCLIPModel, scale_and_bias

MEANINGS = {
    "similarity": "text-conditioned cosine similarity, -1 to 1",
    "logit": "exp(logit_scale) * similarity + logit_bias, the model's logits_per_image",
    "probability": "calibrated on validation studies (`itemized-clip calibrate`)",
    "sigmoid": "sigmoid of the logit, uncalibrated: not a probability",
}
DEFAULT = "similarity"


def check_quantity(quantity: str) -> str:
    """
    Raises:
        ValueError: there is no such quantity.
    """
    if quantity not in MEANINGS:
        raise ValueError(f"scores is {quantity!r}, expected one of {', '.join(MEANINGS)}.")
    return quantity


def without_calibration(quantity: str) -> str:
    """
    What a quantity is where there is no calibration: of a probability only the sigmoid of the logit is left, by that name.

    >>> without_calibration("probability"), without_calibration("logit")
    ('sigmoid', 'logit')
    """
    return "sigmoid" if quantity == "probability" else quantity


def normalizes_pool_inputs(quantity: str) -> bool:
    """
    Whether prompts and tokens are L2-normalized before the item pooler: for similarities, as in the published protocols and
    `evaluate`, and what is calibrated of them; not for logits and their sigmoids, which are those of the model's forward pass.
    """
    return quantity in ("similarity", "probability")


@torch.no_grad()
def convert(model: ItemizedCLIPModel, similarities: np.ndarray, quantity: str) -> np.ndarray:
    """
    Similarities, pooled as `normalizes_pool_inputs` says, as the quantity: float32, same shape.

    Raises:
        ValueError: probabilities come from a calibration (`Calibration.judge`), not from the model.
    """
    if quantity == "similarity":
        return similarities
    if quantity == "probability":
        raise ValueError("the scores are uncalibrated: ask for the sigmoid, or calibrate the model.")
    scale, bias = scale_and_bias(model)
    logits = torch.from_numpy(np.asarray(similarities, dtype=np.float32)) * scale + bias
    return (logits if quantity == "logit" else logits.sigmoid()).numpy()


def describe(quantity: str, prompts_per_label: int = 1) -> str:
    """A line for people: `similarity: text-conditioned cosine similarity, -1 to 1`."""
    averaged = "; the embeddings of a label's prompts are averaged" if prompts_per_label > 1 else ""
    return f"{quantity}: {MEANINGS[quantity]}{averaged}"
