"""`pipeline("image-classification")` of a classifier: studies or pictures in, the scores of its labels out."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers.pipelines.image_classification import ImageClassificationPipeline

from .evaluation.encode import encode_studies
from .evaluation.label_scores import apply_function, default_function, label_logits
from .explain.maps import paint_items
from .modeling.classification_itemized_clip import ItemizedCLIPForImageClassification
from .pipelines import ImagesPipeline, check_choices, check_image_processor
from .processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor


def label_studies(
    model: ItemizedCLIPForImageClassification,
    image_processor: ItemizedCLIPImageProcessor,
    studies: Iterable,
    top_k: int | None = None,
    function_to_apply: str | None = None,
    heat_maps: bool = False,
    batch_size: int | None = None,
    num_workers: int | None = None,
    accept: Sequence[str] | None = None,
    layout: str | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """
    Labels of studies, one after another, each a list of `{"label", "score"}`, highest first.

    Args:
        studies: in any form that the processor takes one.
        top_k: how many of the labels are kept, the highest; all if None.
        function_to_apply: `"sigmoid"`, `"softmax"` or `"none"`, the logits; if None the softmax where a study has one class,
            else the sigmoid of each label.
        heat_maps: add `heat_maps`, a [`HeatMap`] of every scan, to every label: where its query looks.
        batch_size: studies of one pass through the vision tower.
        num_workers: threads that read and process studies ahead, see `encode_studies`.
        accept: codes of the checks that a scan is used in spite of, as `itemized-clip predict --accept`.
        layout: what the files of a folder are where it cannot be told, as `itemized-clip predict --layout`.

    Raises:
        ValueError: `top_k` is below 1, there is no such function, or heat maps are asked of a head that has none.
    """
    check_choices(top_k=top_k)
    if heat_maps and not hasattr(model, "item_pooler"):
        raise ValueError("this head has no heat maps: it does not pool tokens for each label.")
    function = function_to_apply or default_function(model)
    names = model.label_names
    stated: dict[str, Any] = {"accept": accept, "layout": layout, "num_workers": num_workers or 0}
    for encoded in encode_studies(model, image_processor, studies, batch_size or 1, **stated):
        for row, scores in enumerate(apply_function(label_logits(model, encoded), function)):
            chosen = np.argsort(-scores, kind="stable")[:top_k].tolist()
            found: list[dict[str, Any]] = [{"label": names[place], "score": float(scores[place])} for place in chosen]
            if heat_maps:
                keep = None if encoded.keep_mask is None else encoded.keep_mask[row : row + 1]
                with torch.no_grad():
                    attention = model.item_pooler(
                        model.label_queries[None, chosen], encoded.tokens[row : row + 1], keep, output_attentions=True
                    )[1][0]
                labels = [names[place] for place in chosen]
                maps = paint_items(attention, labels, encoded.scans[row], model.config.vision.patch_shape)
                for entry, own in zip(found, maps):
                    entry["heat_maps"] = own
            yield found


class ItemizedCLIPClassificationPipeline(ImagesPipeline, ImageClassificationPipeline):  # type: ignore[misc]  # other arguments
    """
    `image-classification` of [`ItemizedCLIPForImageClassification`], see `label_studies`. Of every other model it makes the
    library's own pipeline.

        classify = pipeline("image-classification", model=folder)
        classify({"AX_T1": "t1.nii.gz", "AX_T2": "t2.nii.gz"})
    """

    model: ItemizedCLIPForImageClassification
    _library_class = ImageClassificationPipeline
    _task = "image-classification"
    _process = staticmethod(label_studies)
    _names = ("inputs", "images")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_image_processor(self.image_processor, self.model.config)
        name, made = ItemizedCLIPForImageClassification.__name__, self.model.config.architectures
        if made and name not in made:
            raise ValueError(
                f"{self.model.config.name_or_path or 'the model'} is a {made[0]} without a head for labels, whose scores would "
                "be random: train one (itemized-clip train --task classification), or score texts "
                '(pipeline("zero-shot-study-classification")).'
            )
