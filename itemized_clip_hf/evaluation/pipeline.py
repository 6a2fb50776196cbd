"""`pipeline("zero-shot-study-classification")`: a study and labels in, one score a label out."""

from collections.abc import Mapping

import torch
from transformers import Pipeline

from .encode import encode_prompts
from .zero_shot import score_batch


class ItemizedCLIPPipeline(Pipeline):
    """
    Scores every label by itself: sigmoid of exp(logit_scale) * TCSim + logit_bias, so scores of a study need not sum to 1.

        classify = pipeline("zero-shot-study-classification", model=folder)
        classify({"AX_T1": "t1.nii.gz", "AX_T2": "t2.nii.gz"}, candidate_labels=["glioma", "acute stroke"])
    """

    _load_processor = True  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = False  # type: ignore[assignment]

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, **kwargs):
        preprocess = {}
        if candidate_labels is not None:
            preprocess["candidate_labels"] = candidate_labels
        if hypothesis_template is not None:
            preprocess["hypothesis_template"] = hypothesis_template
        return preprocess, {}, {}

    def __call__(self, studies, candidate_labels: list[str] | Mapping[str, list[str]], **kwargs):  # type: ignore[override]
        """
        Args:
            studies: one study or a list of studies, in any form that the processor takes.
            candidate_labels: texts, or label -> several texts, whose embeddings are averaged.
            hypothesis_template: e.g. `"findings consistent with {}"`; the text alone by default.

        Returns:
            for one study a list of `{"label", "score"}`, highest first; for several studies a list of these.
        """
        if isinstance(candidate_labels, str):
            candidate_labels = [candidate_labels]
        split = self.processor.image_processor.split_studies(studies)
        results = super().__call__([{"study": study} for study in split], candidate_labels=candidate_labels, **kwargs)
        one = len(split) == 1 and not (isinstance(studies, (list, tuple)) and split[0] is studies[0])
        return results[0] if one else results

    def preprocess(self, wrapped, candidate_labels, hypothesis_template="{}"):
        if not isinstance(candidate_labels, Mapping):
            candidate_labels = {label: [label] for label in candidate_labels}
        groups = {
            label: [texts] if isinstance(texts, str) else list(texts) for label, texts in candidate_labels.items()
        }
        prompts = {label: [hypothesis_template.format(text) for text in texts] for label, texts in groups.items()}
        return {"inputs": self.processor(images=[wrapped["study"]], return_tensors="pt"), "prompts": prompts}

    def _forward(self, model_inputs):
        labels, embeds = encode_prompts(self.model, self.processor, model_inputs["prompts"])
        scores = score_batch(self.model, embeds, model_inputs["inputs"], normalize_pool_inputs=False)
        logits = torch.from_numpy(scores[0]) * self.model.logit_scale.exp().cpu() + self.model.logit_bias.cpu()
        return {"scores": logits.sigmoid(), "labels": labels}

    def postprocess(self, model_outputs):
        pairs = zip(model_outputs["labels"], model_outputs["scores"].tolist())
        return sorted(({"label": label, "score": score} for label, score in pairs), key=lambda result: -result["score"])
