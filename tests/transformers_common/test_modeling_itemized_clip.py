"""transformers' common model, config and training tests on tiny models."""

import unittest
from unittest import mock

import pytest
import torch
from transformers import set_seed
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from itemized_clip_hf import ItemizedCLIPConfig, ItemizedCLIPModel, ItemizedCLIPVisionConfig, ItemizedCLIPVisionModel

BATCH = 7  # the number of rows that the comparisons of attention implementations ask for
VOCABULARY = 99
END_OF_TEXT = VOCABULARY - 1


class VisionTester:
    """Pictures: one scan of depth one, every layer sees all of it; CLIP-like extras."""

    is_training = False  # no loss of its own; the whole model's tests train it
    num_hidden_layers = 2
    hidden_size = 32
    num_attention_heads = 4
    seq_length = 1 + 4

    config = {
        "num_channels": 3,
        "image_size": [1, 16, 16],
        "patch_size": [1, 8, 8],
        "position_embedding_type": "learned",
        "use_pre_layernorm": True,
        "patch_bias": False,
    }

    def __init__(self, parent, batch_size=BATCH):
        self.parent = parent
        self.batch_size = batch_size

    def get_config(self):
        return ItemizedCLIPVisionConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            **self.config,
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.randn(self.batch_size, 3, 16, 16)}


class StudyVisionTester(VisionTester):
    """Studies of up to two named volumes, a layer over the study and one over each scan."""

    seq_length = 1 + 2 * 2 * 4
    config = {
        "num_channels": 1,
        "image_size": [4, 16, 16],
        "patch_size": [2, 8, 8],
        "attention_scopes": ["study", "scan"],
        "use_scan_name_encoder": True,
        "scan_name_hidden_size": 26,
        "scan_name_num_layers": 1,
        "scan_name_num_heads": 2,
        "scan_name_intermediate_size": 20,
    }

    def prepare_config_and_inputs_for_common(self):
        scan_mask = torch.ones(self.batch_size, 2, dtype=torch.bool)
        scan_mask[1::3, 1] = False
        names = torch.randint(1, 45, (self.batch_size, 2, 110))
        names[..., 6] = 46
        names[..., 7:] = 0
        return self.get_config(), {
            "pixel_values": torch.randn(self.batch_size, 2, 1, 4, 16, 16),
            "scan_mask": scan_mask,
            "scan_name_ids": names,
        }


class ScanTableVisionTester(VisionTester):
    """Studies of two volumes told apart by a table, a layer over the study and one over each slice."""

    seq_length = 1 + 2 * 2 * 4
    config = {
        "num_channels": 1,
        "image_size": [4, 16, 16],
        "patch_size": [2, 8, 8],
        "attention_scopes": ["study", "slice"],
        "max_num_scans": 3,
    }

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": torch.randn(self.batch_size, 2, 1, 4, 16, 16)}


class ItemizedCLIPVisionModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (ItemizedCLIPVisionModel,)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    model_tester_class = VisionTester

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self, config_class=ItemizedCLIPVisionConfig, has_text_modality=False, hidden_size=36, num_attention_heads=4
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        """The mixin's test is about tokens; here the input embedding is a convolution."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Conv3d)
            model.set_input_embeddings(torch.nn.Conv3d(1, 1, 1))
            self.assertEqual(model.get_input_embeddings().out_channels, 1)
            self.assertIsNone(model.get_output_embeddings())


@pytest.mark.slow  # the model's own tests have such a tower
class ItemizedCLIPStudyVisionModelTest(ItemizedCLIPVisionModelTest):
    model_tester_class = StudyVisionTester
    additional_model_inputs = ["scan_mask", "scan_name_ids"]


@pytest.mark.slow
class ItemizedCLIPScanTableVisionModelTest(ItemizedCLIPVisionModelTest):
    model_tester_class = ScanTableVisionTester


class PromptTester:
    """Pictures and prompts shared by all of them, CLIP's text tower."""

    is_training = True
    num_hidden_layers = 2
    text_length = 7
    vision_tester_class = VisionTester
    text_config = {
        "model_type": "clip_text_model",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 20,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": END_OF_TEXT,
    }

    def __init__(self, parent, batch_size=BATCH):
        self.parent = parent
        self.batch_size = batch_size
        self.vision_model_tester = self.vision_tester_class(parent, batch_size)

    def get_config(self):
        return ItemizedCLIPConfig(
            vision_config=self.vision_model_tester.get_config().to_dict(),
            text_config=dict(self.text_config),
            projection_dim=16,
            num_pooler_heads=2,
        )

    def prepare_texts(self, *layout):
        input_ids = torch.randint(2, END_OF_TEXT, (*layout, self.text_length))
        attention_mask = torch.ones_like(input_ids)
        input_ids[..., -1] = END_OF_TEXT
        input_ids[::2, ..., -3:] = torch.tensor([END_OF_TEXT, 1, 1])
        attention_mask[::2, ..., -2:] = 0
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def prepare_config_and_inputs_for_common(self):
        _, images = self.vision_model_tester.prepare_config_and_inputs_for_common()
        return self.get_config(), {**images, **self.prepare_texts(self.batch_size)}


class ItemTester(PromptTester):
    """Studies with up to three items each, BERT's text tower."""

    vision_tester_class = StudyVisionTester
    text_config = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "max_position_embeddings": 20,
        "pad_token_id": 1,
    }

    def prepare_config_and_inputs_for_common(self):
        _, images = self.vision_model_tester.prepare_config_and_inputs_for_common()
        item_mask = torch.ones(self.batch_size, 3, dtype=torch.bool)
        item_mask[2::3, 1:] = False
        return self.get_config(), {**images, **self.prepare_texts(self.batch_size, 3), "item_mask": item_mask}


class ItemizedCLIPModelTest(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (ItemizedCLIPModel,)
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True
    model_tester_class = PromptTester
    additional_model_inputs = ["input_ids"]

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self, config_class=ItemizedCLIPConfig, has_text_modality=False, projection_dim=24, num_pooler_heads=4
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """The loss is asked for by `return_loss` and wants items of each study."""
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            inputs["return_loss"] = True
            if inputs["input_ids"].ndim == 2:
                inputs.update({name: inputs[name][:, None] for name in ("input_ids", "attention_mask")})
        return inputs

    def _create_text_training_batch(self, batch_size, seq_length, vocab_size):
        """Items of each study, not the mixin's sequence of tokens: nothing is generated here."""
        tester = self.model_tester_class(self, batch_size)
        _, inputs = tester.prepare_config_and_inputs_for_common()
        return self._prepare_for_class(inputs, ItemizedCLIPModel, return_labels=True)

    @pytest.mark.slow  # tests/trainer/test_overfit.py overfits by every objective
    def test_training_overfit(self):
        with mock.patch.object(ItemizedCLIPConfig, "vocab_size", VOCABULARY, create=True):  # logged by the mixin
            super().test_training_overfit()

    def test_model_outputs_equivalence(self):
        """The loss draws negatives and tokens; both runs have to draw the same."""
        loss = LOSS_MAPPING["ItemizedCLIP"]

        def seeded(**features):
            set_seed(0)
            return loss(**features)

        with mock.patch.dict(LOSS_MAPPING, ItemizedCLIP=seeded):
            super().test_model_outputs_equivalence()

    @unittest.skip("attentions are in the towers' outputs; the vision tower's own test checks them")
    def test_attention_outputs(self):
        pass

    @unittest.skip("hidden states are in the towers' outputs; the vision tower's own test checks them")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("hidden states are in the towers' outputs; the vision tower's own test checks them")
    def test_retain_grad_hidden_states_attentions(self):
        pass


class ItemizedCLIPStudyModelTest(ItemizedCLIPModelTest):
    model_tester_class = ItemTester
    additional_model_inputs = ["input_ids", "item_mask", "scan_mask", "scan_name_ids"]

    @pytest.mark.slow  # the model of pictures learns, too
    def test_training_overfit(self):
        super().test_training_overfit()

    def _text_features_prepare_config_and_inputs(self):
        """The mixin's test expects rows of tokens: all items in one list."""
        config, inputs = super()._text_features_prepare_config_and_inputs()
        return config, {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
