"""`pipeline("zero-shot-study-classification")`: a study and labels in, one score a label out."""

from collections.abc import Mapping

from transformers import Pipeline


class ItemizedCLIPPipeline(Pipeline):
    """
    Scores every label by itself: sigmoid of exp(logit_scale) * TCSim + logit_bias, so scores of a study need not sum to 1.

        classify = pipeline("zero-shot-study-classification", model=folder)
        classify({"AX_T1": "t1.nii.gz", "AX_T2": "t2.nii.gz"}, candidate_labels=["glioma", "acute stroke"])
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(self, candidate_labels=None, hypothesis_template=None, **kwargs):
        preprocess = {}
        if candidate_labels is not None:
            preprocess["candidate_labels"] = candidate_labels
        if hypothesis_template is not None:
            preprocess["hypothesis_template"] = hypothesis_template
        return preprocess, {}, {}

    def __call__(self, studies, candidate_labels: list[str] | Mapping[str, list[str]], **kwargs):
        """
        Args:
            studies: one study or a list of studies, in any form that the processor takes.
            candidate_labels: texts, or label -> several texts, whose scores are averaged.
            hypothesis_template: e.g. `"findings consistent with {}"`; the text alone by default.

        Returns:
            for one study a list of `{"label", "score"}`, highest first; for several studies a list of these.
        """
        split = self.processor.image_processor.split_studies(studies)
        results = super().__call__([{"study": study} for study in split], candidate_labels=candidate_labels, **kwargs)
        several = isinstance(studies, (list, tuple)) and len(split) == len(studies) and split[0] is studies[0]
        return results if several else results[0]

    def preprocess(self, wrapped, candidate_labels, hypothesis_template="{}"):
        if not isinstance(candidate_labels, Mapping):
            candidate_labels = {label: [label] for label in candidate_labels}
        groups = {
            label: [texts] if isinstance(texts, str) else list(texts) for label, texts in candidate_labels.items()
        }
        texts = [hypothesis_template.format(text) for group in groups.values() for text in group]
        inputs = self.processor(images=[wrapped["study"]], text=texts, return_tensors="pt")
        return {"inputs": inputs, "sizes": {label: len(group) for label, group in groups.items()}}

    def _forward(self, model_inputs):
        logits = self.model(**model_inputs["inputs"]).logits_per_image
        return {"scores": logits.float().sigmoid()[0], "sizes": model_inputs["sizes"]}

    def postprocess(self, model_outputs):
        results, start = [], 0
        for label, size in model_outputs["sizes"].items():
            results.append({"label": label, "score": model_outputs["scores"][start : start + size].mean().item()})
            start += size
        return sorted(results, key=lambda result: -result["score"])
