"""`pipeline("image-feature-extraction")`: features of studies and pictures, and the library's own for every other model."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ITEMS, tiny_config
from transformers import AutoModel, pipeline

from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPPipeline, ItemizedCLIPProcessor
from itemized_clip_hf.modeling.classification_itemized_clip import ItemizedCLIPForImageClassification
from itemized_clip_hf.models.tokenizer import train_tokenizer

TASK = "image-feature-extraction"
VOLUMES = {"in_plane_size": 16}
SHAPES = {  # changes to the preset and to the vision config, small enough for a test
    "brain-mri": ({"scan_size": [8, 16, 16], **VOLUMES}, {"use_scan_name_encoder": True}),
    "head-ct": ({"scan_size": [8, 16, 16], **VOLUMES}, {}),
    "chest-ct": ({"scan_size": [8, 16, 16]}, {"attention_scopes": ["slice", "scan", "scan"]}),
    "remote-sensing": ({"scan_size": [1, 16, 16]}, {"num_channels": 3, "image_size": [1, 16, 16]}),
    "natural-images": ({"scan_size": [1, 16, 16]}, {"num_channels": 3, "image_size": [1, 16, 16]}),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Domain -> model and pipeline of its folder."""
    made = {}
    tokenizer = train_tokenizer(ITEMS, vocab_size=120, context_length=24)

    def build(domain: str):
        if domain not in made:
            settings, vision = SHAPES[domain]
            if settings["scan_size"][0] == 1:
                vision = {**vision, "patch_size": [1, 8, 8]}
            folder = tmp_path_factory.mktemp(domain)
            torch.manual_seed(0)
            model = ItemizedCLIPModel(tiny_config(**vision)).eval()
            model.save_pretrained(folder)
            ItemizedCLIPProcessor.from_domain(domain, tokenizer=tokenizer, **settings).save_pretrained(folder)
            made[domain] = model, pipeline(TASK, model=str(folder), device="cpu"), str(folder)
        return made[domain]

    return build


def volume(seed: int = 0, shape=(9, 20, 16)) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 30, 3), dtype=np.uint8))


STUDIES = {
    "brain-mri": {"AX_T1": volume(0), "AX_T2": volume(1)},
    "head-ct": {"AX": volume(0)},
    "chest-ct": volume(0),
    "remote-sensing": picture(),
    "natural-images": picture(),
}


@pytest.mark.parametrize("domain", SHAPES)
def test_features_are_those_of_the_model(make, domain):
    model, extract, _ = make(domain)
    study = STUDIES[domain]
    inputs = extract.image_processor(study, return_tensors="pt")
    with torch.no_grad():
        pooled = model.get_image_features(**inputs).pooler_output
        _, tokens, _ = model.encode_images(**inputs)
    torch.testing.assert_close(extract(study, pool=True, return_tensors=True), pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(extract(study, return_tensors=True), tokens, rtol=0, atol=1e-6)
    nested = extract(study)
    assert type(nested) is list and np.shape(nested) == tuple(tokens.shape)
    np.testing.assert_allclose(nested, tokens, atol=1e-6)
    assert np.shape(extract(images=study, pool=True)) == (1, 16)


def test_batches_and_padded_scans_change_nothing(make):
    model, extract, folder = make("brain-mri")
    studies = [{f"AX_{i}": volume(i) for i in range(count)} for count in (1, 3, 2)]
    per_scan = model.config.vision.patch_shape
    assert per_scan == (4, 8, 8)  # 2 x 2 x 2 patches of a scan of 8 x 16 x 16
    alone = [extract(study, return_tensors=True) for study in studies]
    assert [tuple(tokens.shape) for tokens in alone] == [(1, 8, 16), (1, 24, 16), (1, 16, 16)]
    together = extract(studies, batch_size=3, num_workers=2, return_tensors=True)
    streamed = extract((study for study in studies), batch_size=2, return_tensors=True)
    assert not isinstance(streamed, list)
    for wanted, *others in zip(alone, together, streamed, strict=True):
        for found in others:
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    made = pipeline(TASK, model=folder, pool=True, return_tensors=True, batch_size=3, device="cpu")
    for study, found in zip(studies, made(studies), strict=True):
        torch.testing.assert_close(found, extract(study, pool=True, return_tensors=True), rtol=0, atol=1e-5)
    assert type(made(studies[0], return_tensors=False)) is list


def test_every_form_of_a_study(make, write_volume, tmp_path):
    _, extract, _ = make("chest-ct")
    scan = write_volume("a.nii.gz", shape=(16, 20, 9), affine=np.diag([2.0, 2.0, 3.0, 1.0]))
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copyfile(scan, folder / "a.nii.gz")
    with pytest.raises(ValueError, match="not-hu"):
        extract(str(scan), pool=True)
    settings = {"pool": True, "accept": ["not-hu"]}
    expected = extract(str(scan), **settings)
    one_of_a_list, other = extract([str(scan), folder], **settings)
    assert one_of_a_list == other == expected == extract([scan], **settings)[0]
    _, extract, _ = make("brain-mri")  # of several scans a study: a flat list is one study
    sequences = {"AX_T1": scan, "AX_T2": volume(1)}
    assert np.shape(extract(list(sequences.values()))) == (1, 16, 16)
    assert np.shape(extract([sequences, sequences])) == (2, 1, 16, 16)


def test_dicom_folders(make, tmp_path):
    from dicom_files import make_grid, make_series, save

    _, extract, _ = make("head-ct")
    folder = save(make_series(make_grid()), tmp_path / "study")
    settings = {"pool": True, "accept": ["not-hu"]}
    assert np.shape(extract(folder, **settings)) == (1, 16)
    assert extract([str(folder)] * 2, **settings) == [extract(folder, **settings)] * 2


def test_pictures_in_every_form(make, tmp_path):
    _, extract, _ = make("natural-images")
    picture().save(tmp_path / "picture.png")
    written = io.BytesIO()
    picture().save(written, "PNG")
    address = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
    expected = extract(picture(), pool=True)
    several = extract([str(tmp_path / "picture.png"), address, np.asarray(picture())], pool=True, timeout=1)
    for found in several:
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(extract(np.stack([np.asarray(picture())] * 2))) == 2


def test_the_page(make, write_volume, tmp_path, monkeypatch, capsys):
    """The code block of docs/features.md, as it stands."""
    _, _, folder = make("brain-mri")
    for name in ("T1", "FLAIR"):
        write_volume(f"demo-output/study/{name}.nii.gz")
    (tmp_path / "demo-output" / "model").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "features.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out == "torch.Size([1, 16]) torch.Size([1, 16, 16]) torch.Size([1, 8, 16])\n"


def test_settings_of_the_image_processor(make):
    model, extract, _ = make("brain-mri")
    study = {"AX_T1": volume(0)}
    changed = extract.image_processor(study, return_tensors="pt", use_scan_names=False, do_normalize=False)
    with torch.no_grad():
        expected = model.get_image_features(**changed).pooler_output
    settings = {"use_scan_names": False, "do_normalize": False}
    found = extract(study, pool=True, return_tensors=True, image_processor_kwargs=settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"no settings \['sise'\]"):
        extract(study, image_processor_kwargs={"sise": 3})


def test_what_is_wrong_is_told(make, tmp_path, messages):
    model, extract, folder = make("brain-mri")
    (tmp_path / "broken.nii.gz").write_bytes(b"no volume")
    with pytest.raises(ValueError, match="broken.nii.gz") as caught:
        extract([{"AX_T1": volume(0)}, {"AX_T1": tmp_path / "broken.nii.gz"}], pool=True)
    assert caught.value.__notes__ == ["This is study 1 of those that were given, counted from 0."]
    with pytest.raises(FileNotFoundError, match="missing.nii.gz"):
        extract(str(tmp_path / "missing.nii.gz"))
    for asked in ({"pooled": True}, {"candidate_labels": ["mass"]}):
        with pytest.raises(TypeError, match="has no arguments"):
            extract({"AX_T1": volume(0)}, **asked)
        with pytest.raises(TypeError, match="has no arguments"):
            pipeline(TASK, model=folder, **asked)
    with pytest.raises(TypeError, match="one argument"):
        extract(volume(0), volume(1))
    _, other, _ = make("head-ct")
    model.config.preprocessing = {"image": "0123", "text": "4567"}
    pipeline(TASK, model=model, image_processor=other.image_processor)
    model.config.preprocessing = None
    assert sum("image settings of this processor" in message for message in messages) == 1


def test_folders_of_classifiers(make, tmp_path):
    """What such a folder lacks is random where it is loaded as the whole model: it is refused, unless it is not needed."""
    model, extract, _ = make("brain-mri")
    study, asked = {"AX_T1": volume(0)}, {"pool": True, "return_tensors": True}
    for head in ("items", "class_token"):
        classifier = ItemizedCLIPForImageClassification.from_model(model, ["mass", "bleed"], head=head)
        classifier.save_pretrained(tmp_path / head)
        extract.image_processor.save_pretrained(tmp_path / head)
        itself = pipeline(TASK, model=classifier.eval(), image_processor=extract.image_processor)
        width = 16 if head == "items" else 24
        assert itself(study, **asked).shape == (1, width)
        with pytest.raises(ValueError, match="without a text tower"):
            ItemizedCLIPPipeline(model=AutoModel.from_pretrained(tmp_path / head), processor=None)
    found = pipeline(TASK, model=str(tmp_path / "items"))(study, **asked)
    torch.testing.assert_close(found, extract(study, **asked), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="classifier on the class token"):
        pipeline(TASK, model=str(tmp_path / "class_token"))


def test_other_models_get_the_library_s_own_pipeline():
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel
    from transformers.pipelines import ImageFeatureExtractionPipeline

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit = ViTModel(ViTConfig(**tower, image_size=16, patch_size=8)).eval()
    images = ViTImageProcessorPil(size={"height": 16, "width": 16})
    parts = {"model": vit, "image_processor": images, "device": "cpu"}
    extract, plain = pipeline(TASK, **parts), ImageFeatureExtractionPipeline(**parts, task=TASK)
    assert type(extract) is type(plain) and vars(extract).keys() == vars(plain).keys()
    assert extract(picture()) == plain(picture()) and np.shape(extract(picture(), pool=True)) == (1, 16)
