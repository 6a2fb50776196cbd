"""transformers' common model and training tests on a tiny model that draws masks."""

import unittest
from unittest import mock

import pytest
import torch
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

pytest.importorskip("monai")

from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPForSemanticSegmentation

BATCH = 7
VOCABULARY = 99


class MaskTester:
    """Studies of up to two volumes with up to two items each."""

    is_training = True
    num_hidden_layers = 2

    def __init__(self, parent, batch_size=BATCH):
        self.parent = parent
        self.batch_size = batch_size

    def get_config(self):
        tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
        vision = {
            "image_size": [4, 8, 8],
            "patch_size": [2, 4, 4],
            "num_channels": 1,
            "attention_scopes": ["scan", "study"],
        }
        text = {"model_type": "bert", "vocab_size": VOCABULARY, "max_position_embeddings": 20, "pad_token_id": 1}
        return ItemizedCLIPConfig(
            vision_config={**tower, **vision},
            text_config={**tower, **text},
            projection_dim=16,
            num_pooler_heads=2,
            mask_decoder={"channels": 4, "item_dropout": 0.0},
        )

    def prepare_config_and_inputs_for_common(self):
        scan_mask = torch.ones(self.batch_size, 2, dtype=torch.bool)
        scan_mask[1::3, 1] = False
        item_mask = torch.ones(self.batch_size, 2, dtype=torch.bool)
        item_mask[2::3, 1] = False
        input_ids = torch.randint(2, VOCABULARY, (self.batch_size, 2, 7))
        attention_mask = torch.ones_like(input_ids)
        input_ids[::2, ..., -2:] = 1
        attention_mask[::2, ..., -2:] = 0
        return self.get_config(), {
            "pixel_values": torch.randn(self.batch_size, 2, 1, 4, 8, 8),
            "scan_mask": scan_mask,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "item_mask": item_mask,
        }


@pytest.mark.slow  # a minute of small models
class ItemizedCLIPForSemanticSegmentationTest(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (ItemizedCLIPForSemanticSegmentation,)
    _is_composite = True
    training_overfit_learning_rate = 4e-3  # of a decoder that starts from nothing
    training_grad_norm_reduction_threshold = 0.6  # Dice has a steep gradient to the end
    test_can_init_all_missing_weights_before_2023 = True
    additional_model_inputs = ["input_ids", "item_mask", "scan_mask"]

    def setUp(self):
        self.model_tester = MaskTester(self)
        self.config_tester = ConfigTester(self, config_class=ItemizedCLIPConfig, has_text_modality=False)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            pixels, items = inputs["pixel_values"], inputs["item_mask"].shape[1]
            generator = torch.Generator().manual_seed(0)
            shape = (*pixels.shape[:2], items, *pixels.shape[3:])
            inputs["labels"] = torch.randint(0, 2, shape, generator=generator).to(pixels.device)
        return inputs

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        """Items of each study, not the mixin's sequence of tokens; masks of what is bright, which can be learned."""
        _, inputs = MaskTester(self, batch_size).prepare_config_and_inputs_for_common()
        inputs = self._prepare_for_class(inputs, ItemizedCLIPForSemanticSegmentation)
        bright = inputs["pixel_values"] > 0
        return {**inputs, "labels": bright.expand(-1, -1, inputs["item_mask"].shape[1], -1, -1, -1).long()}

    @pytest.mark.slow
    def test_training_overfit(self):
        with mock.patch.object(ItemizedCLIPConfig, "vocab_size", VOCABULARY, create=True):  # logged by the mixin
            super().test_training_overfit()

    def _text_features_prepare_config_and_inputs(self):
        """The mixin's test expects rows of tokens: all items in one list."""
        config, inputs = super()._text_features_prepare_config_and_inputs()
        return config, {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}

    @unittest.skip("attentions are in the towers' outputs; the vision tower's own test checks them")
    def test_attention_outputs(self):
        pass

    @unittest.skip("hidden states are in the towers' outputs; the vision tower's own test checks them")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("hidden states are in the towers' outputs; the vision tower's own test checks them")
    def test_retain_grad_hidden_states_attentions(self):
        pass
