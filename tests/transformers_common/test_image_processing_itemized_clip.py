"""transformers' common image processor tests, for a preset of pictures and one of volumes."""

import json
import unittest

import numpy as np
import torch
from parameterized import parameterized
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin

from itemized_clip_hf import ItemizedCLIPImageProcessor


class PictureTester(ImageProcessingTester):
    """The preset of natural images at a small size."""

    domain = "natural-images"
    scan_size = [1, 20, 20]
    num_scans = 1

    def __init__(self, parent):
        preset = {**ItemizedCLIPImageProcessor.presets[self.domain], "domain": self.domain}
        super().__init__(parent, **{**preset, "scan_size": self.scan_size})

    def _get_image_processing_classes(self):
        return {"pil": ItemizedCLIPImageProcessor}

    def expected_output_image_shape(self, images):
        depth, height, width = self.scan_size
        return self.num_scans, self.num_channels, depth, height, width


class VolumeTester(PictureTester):
    """The preset of head CT, which shows a series in three windows, at a small size."""

    domain = "head-ct"
    scan_size = [4, 20, 20]
    num_scans = 3

    def __init__(self, parent):
        super().__init__(parent)
        self.in_plane_size = 24
        self.multi_scan = False  # the mixin's lists are batches

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False, **unused):
        """Volumes in HU of different sizes."""
        sizes = np.random.randint(10, 30, (self.batch_size, 3))
        volumes = [np.random.randint(-1000, 1000, size).astype(np.int16) for size in sizes]
        return [torch.from_numpy(volume) for volume in volumes] if torchify else volumes


class ItemizedCLIPImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = PictureTester
    test_cast_dtype = True

    @unittest.skip("asks for torchvision, which has nothing for volumes: one class serves all machines")
    def test_new_models_require_torchvision_backend(self):
        pass

    @unittest.skip("its new process never imports this package, so the Auto class does not know the processor there")
    def test_pil_can_run_without_torchvision(self):
        pass


class ItemizedCLIPVolumeProcessingTest(ItemizedCLIPImageProcessingTest):
    image_processor_tester_class = VolumeTester

    def test_image_processor_to_json_string(self):
        """The mixin's, but that windows are saved as pairs, in their order."""
        settings = self.image_processor_dict
        saved = {**settings, "windows": [[name, list(limits)] for name, limits in settings["windows"].items()]}
        for image_processor_class in self.image_processing_classes.values():
            written = json.loads(image_processor_class(**settings).to_json_string())
            for name, value in saved.items():
                self.assertEqual(written[name], value)

    @unittest.skip("a picture is no volume")
    def test_call_pil(self):
        pass

    @unittest.skip("volumes have no colour channels")
    def test_call_numpy_4_channels(self):
        pass

    @parameterized.expand([1, 3, 4])
    @unittest.skip("volumes have no colour channels")
    def test_convert_to_rgb_mixed_input_batch(self, num_channels):
        pass
