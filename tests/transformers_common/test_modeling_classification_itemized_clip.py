"""transformers' common model tests on the classifier."""

import tempfile
import unittest

import pytest
import torch
from test_modeling_itemized_clip import StudyVisionTester, VisionTester
from transformers.models.auto import modeling_auto
from transformers_tests.test_modeling_common import ModelTesterMixin

from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPForImageClassification

TEXT = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(autouse=True)
def known_as_classifier(monkeypatch):
    """The mixin gives labels to classes that the library's own table names."""
    names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    monkeypatch.setitem(names, "itemized_clip", "ItemizedCLIPForImageClassification")


class PictureClassifierTester(VisionTester):
    is_training = True
    head = "items"

    def get_config(self):
        return ItemizedCLIPConfig(
            vision_config=super().get_config().to_dict(),
            text_config=TEXT,
            projection_dim=16,
            num_pooler_heads=2,
            classifier_head=self.head,
            num_labels=3,
        )


class StudyClassifierTester(PictureClassifierTester, StudyVisionTester):
    config, seq_length = StudyVisionTester.config, StudyVisionTester.seq_length

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), StudyVisionTester.prepare_config_and_inputs_for_common(self)[1]


class ClassTokenTester(PictureClassifierTester):
    head = "class_token"


class ItemizedCLIPForImageClassificationTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (ItemizedCLIPForImageClassification,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    model_tester_class = PictureClassifierTester
    of_labels = ("label_queries",)

    def setUp(self):
        self.model_tester = self.model_tester_class(self)

    def test_model_get_set_embeddings(self):
        """The mixin's test is about tokens; here the input embedding is a convolution."""
        model = ItemizedCLIPForImageClassification(self.model_tester.get_config())
        self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv3d)
        self.assertIsNone(model.get_output_embeddings())

    def test_can_load_ignoring_mismatched_shapes(self):
        """The mixin's test looks for a linear layer; here the labels are rows of a parameter."""
        model = ItemizedCLIPForImageClassification(self.model_tester.get_config())
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            with self.assertRaises(RuntimeError):
                ItemizedCLIPForImageClassification.from_pretrained(folder, num_labels=42)
            larger = ItemizedCLIPForImageClassification.from_pretrained(
                folder, num_labels=42, ignore_mismatched_sizes=True
            )
        changed = [n for n, p in larger.named_parameters() if not torch.equal(p, model.get_parameter(n))]
        self.assertEqual(tuple(changed), self.of_labels)
        self.assertTrue(all(len(larger.get_parameter(name)) == 42 for name in self.of_labels))

    def test_problem_types(self):
        """Without the mixin's regression and its one class of one, which are refused."""
        for title, labels in (("multi_label_classification", torch.zeros(7, 3)), ("single_label_classification", None)):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            config.problem_type = title
            model = ItemizedCLIPForImageClassification(config)
            model(**inputs, labels=torch.zeros(7, dtype=torch.long) if labels is None else labels).loss.backward()
        config.problem_type = "regression"
        with self.assertRaisesRegex(ValueError, "regression"):
            ItemizedCLIPForImageClassification(config)


@pytest.mark.slow  # the classifier of pictures learns, too
class StudyClassifierTest(ItemizedCLIPForImageClassificationTest):
    model_tester_class = StudyClassifierTester
    additional_model_inputs = ["scan_mask", "scan_name_ids"]


@pytest.mark.slow
class ClassTokenClassifierTest(ItemizedCLIPForImageClassificationTest):
    model_tester_class = ClassTokenTester
    of_labels = ("classifier.weight", "classifier.bias")
