"""The classifier: step 0 is zero-shot, labels may be missing, and each head is what it says."""

import numpy as np
import pytest
import torch
from heads import make_classifier
from huggingface_hub.errors import StrictDataclassError
from tiny_models import ITEMS, random_study
from torch.nn import functional as F

from itemized_clip_hf import ItemizedCLIPForImageClassification
from itemized_clip_hf.evaluation.quantity import convert
from itemized_clip_hf.evaluation.zero_shot import score_studies
from itemized_clip_hf.phantom import PhantomDataset
from itemized_clip_hf.phantom.experiment import as_scans

PROMPTS = {"mass": ["left frontal mass"], "bleed": [ITEMS[1], "a bleed"], "normal": "no significant abnormalities."}


def studies():
    """Of the phantom, of other sequences each."""
    found = [as_scans(study) for study in PhantomDataset("test", 3, shape=(8, 16, 16))]
    return [dict(list(scans.items())[: 2 + number]) for number, scans in enumerate(found)]


@pytest.mark.parametrize("scoring", ["items", "global"])
def test_step_0_is_zero_shot(make_model, processor, scoring):
    """
    The logits are the model's own, whose pooler gets what the towers made, not normalized: quantity "logit". The similarity of
    the protocols normalizes first.
    """
    model = make_model()
    model.config.scoring = scoring
    inputs = processor(images=studies(), return_tensors="pt")
    classifier = ItemizedCLIPForImageClassification.from_prompts(model, processor, PROMPTS)
    with torch.no_grad():
        found = classifier(**inputs).logits
    labels, similarities = score_studies(model, processor, studies(), PROMPTS, normalize_pool_inputs=False)
    assert labels == classifier.label_names
    expected = convert(model, similarities, "logit")
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    single = {label: text for label, text in PROMPTS.items() if label != "bleed"}
    texts = [text if isinstance(text, str) else text[0] for text in single.values()]
    with torch.no_grad():
        whole = model(**inputs, **processor(text=texts, return_tensors="pt")).logits_per_image
    np.testing.assert_allclose(found[:, [0, 2]], whole, rtol=1e-6, atol=1e-6)
    _, normalized = score_studies(model, processor, studies(), PROMPTS)
    assert scoring == "global" or 0 < np.abs(normalized - similarities).max() < 0.02


def test_a_folder_of_the_whole_model_loads(make_model, processor, tmp_path, messages):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = ItemizedCLIPForImageClassification.from_pretrained(tmp_path, num_labels=4)
    own = dict(model.named_parameters())
    for name, parameter in loaded.named_parameters():
        if name != "label_queries":
            assert torch.equal(parameter, own[name]), name
    assert loaded.label_queries.shape == (4, 16) and loaded.label_queries.std() > 0
    assert any("label_queries" in message for message in messages)  # the library says what is new
    assert not any("text_model" in message for message in messages)


def test_the_model_itself_is_left_alone(make_model, processor):
    model = make_model()
    classifier = ItemizedCLIPForImageClassification.from_prompts(model, processor, PROMPTS)
    with torch.no_grad():
        classifier.logit_bias += 1
        classifier.vision_model.final_layer_norm.weight.zero_()
    assert model.config.id2label != classifier.config.id2label
    assert model.logit_bias.item() == -10 and model.vision_model.final_layer_norm.weight.any()


def images():
    inputs = random_study(None, scans=2)
    return {name: inputs[name].expand(3, *inputs[name].shape[1:]) for name in ("pixel_values", "scan_mask")}


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_missing_labels_count_nothing(weights):
    model = make_classifier(class_weights=weights)
    logits = torch.randn(3, 3, dtype=torch.float64)
    labels = torch.tensor([[1, 0, np.nan], [0, -100, 1], [np.nan, np.nan, np.nan]], dtype=torch.float64)
    w = weights or [1.0, 1.0, 1.0]
    expected = [
        -w[0] * F.logsigmoid(logits[0, 0]),
        -F.logsigmoid(-logits[0, 1]),
        -F.logsigmoid(-logits[1, 0]),
        -w[2] * F.logsigmoid(logits[1, 2]),
    ]
    found = model.classification_loss(logits, labels)
    assert found.item() == pytest.approx(sum(expected).item() / 4, rel=1e-5)
    nothing = model.classification_loss(logits.requires_grad_(), torch.full((3, 3), torch.nan))
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()


def test_one_class_a_study():
    model = make_classifier(problem_type="single_label_classification", class_weights=[1, 2, 3])
    logits = torch.randn(3, 3)
    p = logits.softmax(1).log()
    found = model.classification_loss(logits, torch.tensor([2, -100, 1]))
    assert found.item() == pytest.approx(-(3 * p[0, 2] + 2 * p[2, 1]).item() / 2, rel=1e-5)
    assert model.classification_loss(logits, torch.full((3,), -100)) == 0


def test_the_kind_of_problem_is_read_off_the_labels_and_kept():
    model = make_classifier(problem_type=None)
    model(**images(), labels=torch.zeros(3, dtype=torch.long))
    assert model.config.problem_type == "single_label_classification"
    with pytest.raises(ValueError, match=r"labels have the shape \(3, 3\)"):
        model(**images(), labels=torch.zeros(3, 3))


def test_padded_scans_change_nothing():
    model, inputs = make_classifier(), images()
    mask = torch.tensor([[True, False]] * 3)
    with torch.no_grad():
        alone = model(inputs["pixel_values"][:, :1]).logits
        padded = model(inputs["pixel_values"], scan_mask=mask).logits
        attention = model.label_attentions(inputs["pixel_values"], mask)
    torch.testing.assert_close(padded, alone)
    tokens = attention.shape[2] // 2
    assert attention.shape == (3, 3, 2 * 2 * 2 * 2) and not attention[..., tokens:].any()
    assert (attention.sum(-1) < 1).all() and attention[..., :tokens].any()


def test_the_class_token_head():
    model = make_classifier(head="class_token")
    names = dict(model.named_parameters())
    assert not [name for name in names if name.split(".")[0] not in ("vision_model", "classifier")]
    assert not model(**images()).logits.any()
    model.classifier.bias.data += torch.tensor([1.0, 2.0, 3.0])
    model.classifier.weight.data.normal_()
    token = model.vision_model(**images()).pooler_output
    torch.testing.assert_close(
        model(**images()).logits, token @ names["classifier.weight"].T + names["classifier.bias"]
    )
    with pytest.raises(ValueError, match="reads the class token"):
        model.label_attentions(**images())


def test_what_cannot_be_built_is_refused(make_model, processor):
    for settings, message in (
        ({"labels": ["a", "a"]}, "no name twice"),
        ({"labels": []}, "at least one"),
        ({"head": "tokens"}, "classifier_head is 'tokens'"),
        ({"class_weights": [1.0, 2.0]}, "expected 3 numbers"),
        ({"problem_type": "regression"}, "problem_type is 'regression'"),
    ):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            make_classifier(**settings)
    with pytest.raises(ValueError, match="have no text"):
        ItemizedCLIPForImageClassification.from_prompts(make_model(), processor, {"mass": []})
