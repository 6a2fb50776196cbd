"""Pipelines: studies or pictures and labels in, one score a label out, each label scored by itself."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import Pipeline
from transformers.image_utils import load_image
from transformers.pipelines.zero_shot_image_classification import ZeroShotImageClassificationPipeline

from ..explain.maps import attend, paint_items
from .encode import encode_prompts, encode_studies
from .zero_shot import score_encoded


@torch.no_grad()
def classify_studies(
    model,
    processor,
    studies: list,
    candidate_labels,
    hypothesis_template: str = "{}",
    batch_size: int | None = None,
    heat_maps: bool = False,
) -> list[list[dict[str, Any]]]:
    """
    Scores of studies, highest first: sigmoid of exp(logit_scale) * TCSim + logit_bias, so those of a study need not sum to 1.

    Args:
        studies: in any form that the processor takes one.
        candidate_labels: a text, texts, or label -> one or several texts, whose embeddings are averaged.
        hypothesis_template: e.g. `"findings consistent with {}"`.
        batch_size: studies of one pass through the vision tower.
        heat_maps: add `heat_maps`, a [`HeatMap`] of every scan, to every label.
    """
    if isinstance(candidate_labels, str):
        candidate_labels = [candidate_labels]
    if not candidate_labels:
        raise ValueError("there are no candidate_labels: pass texts, or label -> texts.")
    groups = (
        candidate_labels if isinstance(candidate_labels, Mapping) else {label: [label] for label in candidate_labels}
    )
    prompts = {
        label: [hypothesis_template.format(text) for text in ([texts] if isinstance(texts, str) else texts)]
        for label, texts in groups.items()
    }
    labels, embeds = encode_prompts(model, processor, prompts)
    results: list[list[dict[str, Any]]] = []
    for encoded in encode_studies(model, processor, studies, batch_size or 1):
        cosines = torch.from_numpy(score_encoded(model, embeds, encoded, normalize_pool_inputs=False))
        logits = cosines * model.logit_scale.exp().float().cpu() + model.logit_bias.float().cpu()
        for row, scores in enumerate(logits.sigmoid().tolist()):
            found = [{"label": label, "score": score} for label, score in zip(labels, scores)]
            if heat_maps:
                keep = None if encoded.keep_mask is None else encoded.keep_mask[row : row + 1]
                attention = attend(model, embeds[None], encoded.tokens[row : row + 1], keep)[0]
                patch = model.config.vision_config.patch_size
                for entry, maps in zip(found, paint_items(attention, labels, encoded.scans[row], patch)):
                    entry["heat_maps"] = maps
            results.append(sorted(found, key=lambda entry: -entry["score"]))
    return results


class ItemizedCLIPPipeline(Pipeline):
    """
    Scores every label of a study by itself, see `classify_studies`.

        classify = pipeline("zero-shot-study-classification", model=folder)
        classify({"AX_T1": "t1.nii.gz", "AX_T2": "t2.nii.gz"}, candidate_labels=["glioma", "acute stroke"])
    """

    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.processor.check_model(self.model.config)

    def __call__(self, studies, candidate_labels, **kwargs):  # type: ignore[override]
        """
        Args:
            studies: one study or a list of studies, in any form that the processor takes.
            candidate_labels, hypothesis_template, batch_size, heat_maps: of `classify_studies`.

        Returns:
            for one study a list of `{"label", "score"}`, highest first; for several studies a list of these.
        """
        split = self.processor.image_processor.split_studies(studies)
        results = self.run_studies(split, candidate_labels, **kwargs)
        one = len(split) == 1 and not (isinstance(studies, (list, tuple)) and split[0] is studies[0])
        return results[0] if one else results

    def run_studies(self, studies: list, candidate_labels, **kwargs) -> list[list[dict[str, Any]]]:
        settings = {**self._preprocess_params, "batch_size": self._batch_size, **kwargs}
        return classify_studies(self.model, self.processor, studies, candidate_labels, **settings)

    def _sanitize_parameters(self, **kwargs):
        return kwargs, {}, {}

    def preprocess(self, study, **kwargs):
        return {"study": study, **kwargs}

    def _forward(self, model_inputs):
        study = model_inputs.pop("study")
        return {"found": self.run_studies([study], **model_inputs)[0]}

    def postprocess(self, model_outputs):
        return model_outputs["found"]


class ItemizedCLIPImagePipeline(ZeroShotImageClassificationPipeline):
    """
    The library's `zero-shot-image-classification` for all models, but that ItemizedCLIP's score each label by itself instead of
    sharing one softmax among the labels, and take what `classify_studies` does.
    """

    _load_processor = None  # type: ignore[assignment]

    def __call__(self, image=None, candidate_labels=None, **kwargs):  # type: ignore[override]
        if self.model.config.model_type != "itemized_clip":
            return super().__call__(image, candidate_labels=candidate_labels, **kwargs)
        if self.processor is None:
            raise ValueError("the pipeline has no processor: pass the model's folder or name, or `processor=`.")
        if self.model.config.vision_config.image_size[0] > 1:
            raise ValueError('this is a model of volumes: use pipeline("zero-shot-study-classification").')
        one = not isinstance(image, (list, tuple))
        kwargs.setdefault("batch_size", self._batch_size)
        timeout = kwargs.pop("timeout", None)
        images = [image] if one else list(image)
        loaded = [load_image(x, timeout=timeout) if isinstance(x, str) else x for x in images]
        results = classify_studies(self.model, self.processor, loaded, candidate_labels, **kwargs)
        return results[0] if one else results
