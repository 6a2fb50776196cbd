"""Pipelines: of studies or pictures one score for each label, each label scored by itself, or features."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.image_utils import load_image
from transformers.pipelines.image_feature_extraction import ImageFeatureExtractionPipeline
from transformers.pipelines.zero_shot_image_classification import ZeroShotImageClassificationPipeline

from .evaluation.calibration import Calibration, load_calibration
from .evaluation.encode import EncodedStudies, encode_prompts, encode_studies, texts_by_label
from .evaluation.probabilities import choose_quantity
from .evaluation.quantity import DEFAULT, check_quantity, convert, normalizes_pool_inputs
from .evaluation.zero_shot import score_encoded
from .explain.maps import HeatMap, attend, paint_items
from .modeling.modeling_itemized_clip import ItemizedCLIPModel
from .processing.image_processing_itemized_clip import ItemizedCLIPImageProcessor
from .processing.processing_itemized_clip import ItemizedCLIPProcessor, hash_image_settings, warn_of_differences

Labels = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""A text, texts, or label -> one or several texts."""


def classify_studies(
    model: ItemizedCLIPModel,
    processor: ItemizedCLIPProcessor,
    studies: Iterable,
    candidate_labels: Labels | None = None,
    hypothesis_template: str = "{}",
    batch_size: int | None = None,
    heat_maps: bool = False,
    accept: Sequence[str] | None = None,
    scores: str = DEFAULT,
    top_k: int | None = None,
    num_workers: int | None = None,
    layout: str | None = None,
    calibration: Calibration | str | bool | None = None,
    point: str | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """
    Scores of studies, one after another, each a list of `{"label", "score", "quantity", "calibrated"}`, highest first. Every
    label is scored by itself: the scores of a study do not sum to 1, in any quantity. Where the model is calibrated for the
    texts of a label, its entry also has `probability`, `low` and `high` of its 95 % interval, `positive` at the
    `operating_point`, and `distance_percentile`: the share of the calibration's studies, in percent, that lie nearer to them.

    Args:
        studies: in any form that the processor takes one.
        candidate_labels: a text, texts, or label -> one or several texts, whose embeddings are averaged.
        hypothesis_template: e.g. `"findings consistent with {}"`.
        batch_size: studies of one pass through the vision tower.
        heat_maps: add `heat_maps`, a [`HeatMap`] of every scan, to every label.
        accept: codes of the checks that a scan is used in spite of, as `itemized-clip predict --accept`.
        layout: what the files of a folder are where it cannot be told, as `itemized-clip predict --layout`.
        scores: `"similarity"`, the text-conditioned cosine that the protocols of `evaluate` use; `"logit"`, `logits_per_image`
            of the model; `"probability"` where all labels are calibrated, else the `"sigmoid"` of the logit, called so.
        calibration, point: see `evaluation.calibration.load_calibration`; logits and sigmoids are uncalibrated.
        top_k: how many of the labels are kept, the highest; all if None.
        num_workers: threads that read and process studies ahead, see `encode_studies`.

    Raises:
        ValueError: there are no labels, no such `scores`, `top_k` is below 1, or the calibration is that of other weights.
    """
    check_choices(scores, top_k)
    prompts = read_labels(candidate_labels, hypothesis_template)
    said, scores = choose_quantity(load_calibration(model, processor, calibration, point), prompts, scores)
    labels, embeds = encode_prompts(model, processor, prompts)
    stated: dict[str, Any] = {"accept": accept, "layout": layout, "num_workers": num_workers or 0}
    for encoded in encode_studies(model, processor, studies, batch_size or 1, **stated):
        similarities = score_encoded(model, embeds, encoded, normalizes_pool_inputs(scores))
        judged, percentiles = said.of(similarities), said.percentiles(encoded)
        table = said.table(judged) if scores == "probability" else convert(model, similarities, scores)
        for row, own in enumerate(table):
            chosen = np.argsort(-own, kind="stable")[:top_k].tolist()
            found: list[dict[str, Any]] = [
                {"label": labels[place], "score": float(own[place]), "quantity": scores}
                | said.entry(judged[row].get(labels[place]), percentiles[row])
                for place in chosen
            ]
            if heat_maps:
                names = [labels[place] for place in chosen]
                for entry, maps in zip(found, _paint_row(model, embeds[chosen], encoded, row, names)):
                    entry["heat_maps"] = maps
            yield found


@torch.no_grad()
def _paint_row(
    model: ItemizedCLIPModel, embeds: torch.Tensor, encoded: EncodedStudies, row: int, names: list[str]
) -> Iterator[list[HeatMap]]:
    """Heat maps of one of the encoded studies, label by label: one a scan."""
    keep = None if encoded.keep_mask is None else encoded.keep_mask[row : row + 1]
    attention = attend(model, embeds[None], encoded.tokens[row : row + 1], keep)[0]
    yield from paint_items(attention, names, encoded.scans[row], model.config.vision.patch_shape)


def extract_features(
    model: ItemizedCLIPModel,
    image_processor: ItemizedCLIPImageProcessor,
    studies: Iterable,
    pool: bool | None = None,
    return_tensors: bool | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    accept: Sequence[str] | None = None,
    layout: str | None = None,
    image_processor_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """
    Features of studies, one after another, whatever the batches: padded scans are neither seen nor returned.

    Args:
        studies: in any form that the processor takes one.
        pool: the projected class token (1, P), `pooler_output` of `get_image_features`, in place of the projected patch tokens
            (1, L, P) of `encode_images`, in the order scan, depth, height, width. Neither is normalized.
        return_tensors: tensors on the CPU in the model's precision, in place of nested lists.
        batch_size: studies of one pass through the vision tower.
        num_workers: threads that read and process studies ahead, see `encode_studies`.
        accept, layout: as of `classify_studies`.
        image_processor_kwargs: changes to the settings of the image processor.

    Raises:
        ValueError, OSError: a study cannot be read, the error's note tells which; or the image processor has no such setting.
    """

    def refuse(number: int, error: Exception) -> None:
        error.add_note(f"This is study {number} of those that were given, counted from 0.")
        raise error

    stated: dict[str, Any] = {"accept": accept, "layout": layout, "image_processor_kwargs": image_processor_kwargs}
    workers = num_workers or 0
    for encoded in encode_studies(
        model, image_processor, studies, batch_size or 1, on_error=refuse, num_workers=workers, **stated
    ):
        for row in range(len(encoded.tokens)):
            features = encoded.image_embeds[row] if pool else encoded.tokens[row]
            if encoded.token_mask is not None and not pool:
                features = features[encoded.token_mask[row]]
            features = features[None].cpu()
            yield features if return_tensors else features.tolist()


def check_choices(scores: str = DEFAULT, top_k: int | None = None, **others) -> None:
    """Raises a ValueError where there is no such quantity or number of labels."""
    check_quantity(scores)
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k!r}, expected a number of labels, at least 1, or None for all.")


def read_labels(candidate_labels: Labels | None, hypothesis_template: str = "{}") -> dict[str, list[str]]:
    """Label -> its prompts."""
    if isinstance(candidate_labels, str):
        candidate_labels = [candidate_labels]
    groups = texts_by_label(candidate_labels or ())
    if not groups or not all(groups.values()):
        raise ValueError("there are no candidate_labels, or one has no text: pass texts, or label -> texts.")
    return {label: [hypothesis_template.format(text) for text in texts] for label, texts in groups.items()}


def is_stream(inputs: Any) -> bool:
    """A generator or a data set, which is read one example at a time."""
    return isinstance(inputs, (Iterator, Dataset))


def read_stream(inputs: Any) -> Iterator:
    """Examples of a generator or data set, one after another."""
    return inputs if isinstance(inputs, Iterator) else (inputs[index] for index in range(len(inputs)))


def apply(process: Callable[[Iterable], Iterator], image_processor: ItemizedCLIPImageProcessor, inputs: Any) -> Any:
    """What `process` makes of a study; of several studies a list, of a generator or data set an iterator."""
    if is_stream(inputs):
        return process(read_stream(inputs))
    split = image_processor.split_studies(inputs)
    results = list(process(split))
    one = len(split) == 1 and not (isinstance(inputs, (list, tuple)) and split[0] is inputs[0])
    return results[0] if one else results


class ItemizedCLIPPipeline(Pipeline):
    """
    Scores every label of a study by itself, see `classify_studies`.

        classify = pipeline("zero-shot-study-classification", model=folder)
        classify({"AX_T1": "t1.nii.gz", "AX_T2": "t2.nii.gz"}, candidate_labels=["glioma", "acute stroke"])
    """

    model: ItemizedCLIPModel
    processor: ItemizedCLIPProcessor
    _load_processor = True  # type: ignore[assignment]  # the library declares None
    _load_image_processor = False  # type: ignore[assignment]  # the library declares None
    _load_feature_extractor = False  # type: ignore[assignment]  # the library declares None
    _load_tokenizer = False  # type: ignore[assignment]  # the library declares None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        require_text_tower(self.model)
        self.processor.check_model(self.model.config)

    def __call__(  # type: ignore[override]  # the library's takes anything
        self,
        studies: Any,
        candidate_labels: Labels | None = None,
        num_workers: int | None = None,
        **kwargs,
    ) -> Any:
        """
        Args:
            studies: one study or a list of studies, in any form that the processor takes; a generator or data set of them.
            candidate_labels, hypothesis_template, scores, top_k, batch_size, num_workers, heat_maps, accept, layout,
                calibration, point: of `classify_studies`; what is left out is as the pipeline was made with.

        Returns:
            for one study a list of `{"label", "score", "quantity", "calibrated"}`, highest first; for several studies a list of
            these, for a generator or data set an iterator.
        """
        given = {"batch_size": self._batch_size, "num_workers": self._num_workers, **self._preprocess_params, **kwargs}
        if candidate_labels is not None:
            given["candidate_labels"] = candidate_labels
        if num_workers is not None:
            given["num_workers"] = num_workers
        check_choices(**given)
        classify = partial(classify_studies, self.model, self.processor, **given)
        return apply(classify, self.processor.image_processor, studies)

    def _sanitize_parameters(self, **kwargs):
        check_choices(**kwargs)
        return kwargs, {}, {}

    def preprocess(self, input_: Any, **kwargs) -> dict[str, Any]:
        """One study with the settings of its call, still closed."""
        return {"study": input_, **kwargs}

    def _forward(self, input_tensors: dict[str, Any], **kwargs):
        study = input_tensors.pop("study")
        return {"found": next(classify_studies(self.model, self.processor, [study], **input_tensors))}

    def postprocess(self, model_outputs: Any, **kwargs) -> list[dict[str, Any]]:
        """The scores of the study."""
        return model_outputs["found"]


class OfOneModel:
    """Part of a pipeline that is registered for all models: of every other one it makes the library's own pipeline."""

    _library_class: type[Pipeline]

    def __new__(cls, *args, **kwargs):
        """The library's own pipeline where the model is not ItemizedCLIP."""
        model = kwargs.get("model", args[0] if args else None)
        if getattr(getattr(model, "config", None), "model_type", None) == "itemized_clip":
            return super().__new__(cls)
        return cls._library_class(*args, **kwargs)


class ImagesPipeline(OfOneModel):
    """
    Part of a pipeline that takes images and nothing else: `_process(model, image_processor, studies, **arguments)` is what it
    makes of them, one after another.
    """

    _task: str
    _process: Callable[..., Iterator]
    _names: tuple[str, ...] = ("images",)
    """By which the images may be passed."""

    def __call__(self, *args, **kwargs) -> Any:
        """
        Args:
            images: one study or picture or a list of them, in any form that the processor takes, for models of pictures also
                the address of one; a generator or data set of them.
            timeout: seconds to wait for a picture that is fetched.
            kwargs: arguments of `_process`; what is left out is as the pipeline was made with.

        Returns:
            what `_process` makes of one study; for several studies a list, for a generator or data set an iterator.
        """
        this: Any = self
        named = [name for name in self._names if name in kwargs]
        if len(args) + len(named) != 1:
            raise TypeError("expected one argument, the images; all others by their names.")
        images = args[0] if args else kwargs.pop(named[0])
        made_with = {"batch_size": this._batch_size, "num_workers": this._num_workers, **this._preprocess_params}
        given = {**made_with, **self._sanitize_parameters(**kwargs)[0]}
        timeout = given.pop("timeout", None)
        fetches = this.model.config.vision.image_shape[0] == 1

        def process(studies: Iterable) -> Iterator:
            opened = (load_image(x, timeout=timeout) if fetches and is_picture_url(x) else x for x in studies)
            return self._process(this.model, this.image_processor, opened, **given)

        return apply(process, this.image_processor, images)

    def _sanitize_parameters(self, **kwargs):
        known = set(signature(self._process).parameters) - {"model", "image_processor", "studies"} | {"timeout"}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise TypeError(f"{self._task} has no arguments {unknown}; it has {sorted(known)}.")
        return {name: value for name, value in kwargs.items() if value is not None}, {}, {}


class ItemizedCLIPImagePipeline(OfOneModel, ZeroShotImageClassificationPipeline):
    """
    `zero-shot-image-classification` of ItemizedCLIP: each label is scored by itself instead of sharing one softmax with the
    others, and it takes what `classify_studies` does. Of every other model it makes the library's own pipeline.
    """

    model: ItemizedCLIPModel
    processor: ItemizedCLIPProcessor
    _load_processor = None  # type: ignore[assignment]  # the library's never loads one, and needs none
    _library_class = ZeroShotImageClassificationPipeline

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        require_text_tower(self.model)

    def __call__(  # type: ignore[override]  # the library's takes anything
        self,
        image: Any = None,
        candidate_labels: Labels | None = None,
        **kwargs,
    ) -> Any:
        """Scores of one picture, or of each of several, see `classify_studies`."""
        if self.processor is None:
            raise ValueError("the pipeline has no processor: pass the model's folder or name, or `processor=`.")
        if self.model.config.vision.image_shape[0] > 1:
            raise ValueError('this is a model of volumes: use pipeline("zero-shot-study-classification").')
        given = {"batch_size": self._batch_size, "num_workers": self._num_workers, **self._preprocess_params, **kwargs}
        if candidate_labels is not None:
            given["candidate_labels"] = candidate_labels
        check_choices(**given)
        timeout = given.pop("timeout", None)
        given.pop("tokenizer_kwargs", None)  # of the library's own

        def classify(images: Iterable) -> Iterator:
            opened = (
                load_image(x, timeout=timeout) if isinstance(x, str) and not os.path.isdir(x) else x for x in images
            )
            return classify_studies(self.model, self.processor, opened, **given)

        return apply(classify, self.processor.image_processor, image)

    def _sanitize_parameters(self, tokenizer_kwargs: Any = None, batch_size: int | None = None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(tokenizer_kwargs, **kwargs)
        check_choices(**kwargs)
        names = ("heat_maps", "accept", "scores", "top_k", "calibration", "point")
        own = {name: kwargs[name] for name in names if name in kwargs}
        return {**preprocess, **own}, forward, postprocess


class ItemizedCLIPFeaturePipeline(ImagesPipeline, ImageFeatureExtractionPipeline):  # type: ignore[misc]  # other arguments
    """
    `image-feature-extraction` of ItemizedCLIP: features of studies and pictures, see `extract_features`. Of every other model
    it makes the library's own pipeline.

    Returns, as the library's: for one study nested lists or a tensor, (1, P) with `pool`, else (1, L, P).

        extract = pipeline("image-feature-extraction", model=folder)
        extract({"AX_T1": "t1.nii.gz", "AX_T2": "t2.nii.gz"}, pool=True, return_tensors=True)  # (1, P)
    """

    model: ItemizedCLIPModel
    _library_class = ImageFeatureExtractionPipeline
    _task = "image-feature-extraction"
    _process = staticmethod(extract_features)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        check_image_processor(self.image_processor, self.model.config)
        if is_classifier(self.model) and self.model.config.classifier_head != "items" and not own_head(self.model):
            raise ValueError(
                f"{self.model.config.name_or_path} holds a classifier on the class token, without the projection of the "
                "features: pass the model that it was made from, or the classifier itself, "
                "model=ItemizedCLIPForImageClassification.from_pretrained(...)."
            )


def is_classifier(model: Any) -> bool:
    """Whether it was loaded from the folder of a classifier, or is one."""
    return own_head(model) or "ItemizedCLIPForImageClassification" in (model.config.architectures or ())


def own_head(model: Any) -> bool:
    """Whether the head of a classifier is there; loaded as `AutoModel` it is not, and what a classifier lacks is random."""
    return hasattr(model, "classification_loss")


def require_text_tower(model: Any) -> None:
    """Raises a ValueError where it is a classifier, which has no text tower: the scores of texts would be random."""
    if is_classifier(model):
        raise ValueError(
            f"{model.config.name_or_path or 'the model'} is a classifier without a text tower: use "
            'pipeline("image-classification"), or pass the model that it was made from.'
        )


def check_image_processor(image_processor: Any, config: Any) -> None:
    """Raises a ValueError where it is another class; warns where the model was made for other settings."""
    if not hasattr(image_processor, "process_study"):
        raise ValueError(
            f"the image processor is a {type(image_processor).__name__}, expected an ItemizedCLIPImageProcessor: "
            "pass the model's folder or name, or `image_processor=`."
        )
    settings = {"image": hash_image_settings(image_processor)}
    warn_of_differences(getattr(config, "preprocessing", None), settings, config.name_or_path or "the model")


def is_picture_url(source: Any) -> bool:
    """The address of a picture, or a picture that is written out as one."""
    return isinstance(source, str) and source.startswith(("http://", "https://", "data:image/"))
