"""transformers' common processor tests, for a preset of pictures and one of named volumes."""

import unittest
from unittest import mock

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers_tests.test_processing_common import ProcessorTesterMixin

from itemized_clip_hf import ItemizedCLIPImageProcessor, ItemizedCLIPProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "lower", "newer", "upper", "older", "longer", "string"]


def build_tokenizer():
    """Whole words, BERT's special tokens."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=256,
    )


class ItemizedCLIPProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = ItemizedCLIPProcessor
    domain = "natural-images"
    settings = {"scan_size": [1, 20, 20]}

    @classmethod
    def _setup_tokenizer(cls):
        return build_tokenizer()

    @classmethod
    def _setup_image_processor(cls):
        return ItemizedCLIPImageProcessor.from_domain(cls.domain, **cls.settings)

    @staticmethod
    def prepare_processor_dict():
        return {"lowercase": True}

    # Saving leaves the library's `auto_map` on a processor whose code is saved too, loading drops it: both without it.
    @mock.patch.object(ItemizedCLIPProcessor, "_auto_class", None)
    def test_processor_from_and_save_pretrained(self):
        super().test_processor_from_and_save_pretrained()

    @mock.patch.object(ItemizedCLIPProcessor, "_auto_class", None)
    def test_processor_from_and_save_pretrained_as_nested_dict(self):
        super().test_processor_from_and_save_pretrained_as_nested_dict()

    @unittest.skip("every study has an image; text alone is a call without images")
    def test_processor_text_has_no_visual(self):
        pass

    @unittest.skip("texts hold no placeholder tokens for images")
    def test_if_input_has_mismatching_tokens_and_mm_data(self):
        pass


class ItemizedCLIPStudyProcessorTest(ItemizedCLIPProcessorTest):
    domain = "brain-mri"
    settings = {"scan_size": [4, 20, 20], "in_plane_size": 24}

    def prepare_images_inputs(self, batch_size=None, nested=False):
        """Studies of two named volumes, already windowed, so that `rescale_factor` counts."""
        studies = [
            {name: np.random.randint(0, 255, (5, 30, 26), dtype=np.uint8) for name in ("AX T1", "AX_T2 FLAIR")}
            for _ in range(batch_size or 1)
        ]
        return studies[0] if batch_size is None else studies
