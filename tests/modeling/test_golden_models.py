"""The recorded models of the reference, through the converter and the model's own forward."""

import pytest
import torch
from golden_cases import assert_close, case
from golden_models import picture_model, radiology_model, vision_arguments
from torch.nn import functional as F

from itemized_clip_hf import ItemizedCLIPVisionConfig, ItemizedCLIPVisionModel
from itemized_clip_hf.conversion import radiology
from itemized_clip_hf.conversion.checkpoint import Keys
from itemized_clip_hf.evaluation.encode import encode_prompts
from itemized_clip_hf.evaluation.metrics import classification_summary
from itemized_clip_hf.explain.maps import attention_maps
from itemized_clip_hf.modeling.inflation_itemized_clip import inflate_mae
from itemized_clip_hf.modeling.vision_itemized_clip import resample_grid, scan_positions, sincos_1d, sincos_3d


def zero_shot(model, prompts, tokens):
    return model.score_items(F.normalize(prompts, dim=-1), F.normalize(tokens, dim=-1))


@torch.no_grad()
def test_model2d_tiny():
    meta, io, model = picture_model()
    ids = io["in.token_ids"].view(meta["batch"], meta["items_per_image"], -1)
    out = model(io["in.images"], ids, (ids != 0).long())
    assert_close(out.image_embeds, io["out.image_features"], "global")
    assert_close(out.image_tokens, io["out.image_tokens"], "tokens")
    assert_close(out.item_embeds, io["out.text_features"], "items")
    assert_close(model.logit_scale.exp(), io["out.logit_scale"], "scale")
    assert_close(model.logit_bias, io["out.logit_bias"], "bias")
    text = io["out.text_features"].view(meta["batch"], meta["items_per_image"], -1)
    pooled, attention = model.item_pooler(text, io["out.image_tokens"], output_attentions=True)
    assert_close(pooled, io["out.xattn.features"], "pooler")
    assert_close(attention, io["out.xattn.attn_mean"][..., :-1], "attention map")
    assert_close(model.item_pooler(text, io["out.image_tokens"]), io["out.xattn.features"], "pooler without map")
    keep = io["in.masked.keep_mask"].bool()
    for output_attentions in (False, True):
        masked = model.item_pooler(text, io["out.image_tokens"], keep, output_attentions)
        assert_close(masked[0] if output_attentions else masked, io["out.masked.features"], "masked pooler")
    assert_close(zero_shot(model, io["out.text_features"], out.image_tokens), io["out.infer.logits"], "inference")
    shown = torch.stack([attention_maps(model, {"pixel_values": io["in.images"]}, t)[i] for i, t in enumerate(text)])
    assert_close(shown, io["out.viz.attn_mean"][..., :-1], "drawn map")


@torch.no_grad()
def test_model2d_tiny_classification():
    meta, io, model = picture_model()
    sets = [io["in.cls.prompt_ids_0"], io["in.cls.prompt_ids_1"]]

    class Tokenized:
        """Hands out recorded ids in the place of a tokenizer."""

        def __call__(self, text, return_tensors):
            from transformers import BatchEncoding

            ids = torch.stack([sets[int(t[0])][int(t[2:])] for t in text])
            return BatchEncoding({"input_ids": ids, "attention_mask": (ids != 0).long()})

    prompts = {str(label): [f"0 {label}", f"1 {label}"] for label in range(len(sets[0]))}
    _, classes = encode_prompts(model, Tokenized(), prompts)
    assert_close(classes, io["out.cls.class_embeddings"], "class embeddings")
    features = model.get_image_features(io["in.cls.images"])
    tokens = model.visual_projection(features.last_hidden_state)
    scores = zero_shot(model, classes, tokens)
    assert_close(scores, io["out.cls.logits"], "logits")
    summary = classification_summary(scores.numpy(), io["in.cls.labels"].numpy())
    printed = dict(line.split(": ") for line in meta["classify_printout_average_ensemble"])
    assert f"{summary['top1']:.4f}" == printed["Classification Accuracy"]
    assert f"{summary['top5']:.4f}" == printed["Top-5 Accuracy"]
    assert f"{summary['mean_rank']:.4f}" == printed["Mean Rank"]


def check_radiology(meta, io, model):
    batch, items = len(io["in.volume"]), meta["items_per_image"]
    ids, mask = io["in.token_ids"].view(batch, items, -1), io["in.attention_mask"].view(batch, items, -1)
    names = {"scan_name_ids": io["in.series_ids"]} if "in.series_ids" in io else {}
    out = model(io["in.volume"], ids, mask, **names)
    assert_close(out.image_embeds, io["out.image_features"], "global")
    assert_close(out.image_tokens, io["out.image_tokens"], "tokens")
    assert_close(out.item_embeds, io["out.text_features"], "items")
    text = io["out.text_features"].view(batch, items, -1)
    pooled, attention = model.item_pooler(text, io["out.image_tokens"], output_attentions=True)
    assert_close(pooled, io["out.xattn.features"], "pooler")
    assert_close(attention, io["out.xattn.attn_mean"][..., :-1], "attention map")
    names = {"scan_name_ids": io["in.b.series_ids"]} if "in.b.series_ids" in io else {}
    features = model.get_image_features(io["in.b.volume"], **names)
    assert_close(features.pooler_output, io["out.b.image_features"], "second input, global")
    assert_close(model.visual_projection(features.last_hidden_state), io["out.b.image_tokens"], "second input, tokens")
    prompts = model.get_text_features(io["in.zs.prompt_ids"], (io["in.zs.prompt_ids"] != 0).long()).pooler_output
    return out, features, prompts


@torch.no_grad()
def test_hlipsn_tiny():
    meta, io, model = radiology_model("hlipsn_tiny", "brain-mri", use_scan_name_encoder=True)
    out, features, prompts = check_radiology(meta, io, model)
    tokens_b = model.visual_projection(features.last_hidden_state)
    scores = torch.cat([zero_shot(model, prompts, out.image_tokens), zero_shot(model, prompts, tokens_b)])
    assert_close(scores, io["out.zs.logits"], "zero-shot")
    encoder = model.vision_model.embeddings.scan_name_encoder
    assert_close(encoder.encode(io["in.series_ids"]), io["out.series_name_encoding"], "name encoding")
    assert_close(encoder(io["in.series_ids"]), io["out.series_embedding"], "scan embedding")
    assert_close(out.vision_model_output.last_hidden_state, io["out.trunk_tokens"], "trunk")
    size = io["in.posemb_resample.size"].tolist()
    assert_close(
        resample_grid(model.vision_model.embeddings.position_embedding, size), io["out.posemb_resample"], "resampled"
    )
    assert_close(sincos_3d([2, 2, 2], 48), io["init.spatial_posemb"], "initial positions", 1e-6)
    table = sincos_1d(40, 48)
    assert_close(table, io["init.series_posemb_40"], "initial scan table", 1e-6)
    for count in (5, 60):
        assert_close(scan_positions(table, count, False), io[f"out.series_posemb_resample.{count}"], "scan table", 1e-5)


@torch.no_grad()
def test_hlip_singlescan_tiny():
    meta, io, model = radiology_model("hlip_singlescan_tiny", "chest-ct")
    _, _, prompts = check_radiology(meta, io, model)
    features = model.get_image_features(io["in.zs.volumes"])
    scores = zero_shot(model, prompts, model.visual_projection(features.last_hidden_state))
    assert_close(scores, io["out.zs.logits"], "zero-shot")


@torch.no_grad()
def test_hlip_multiscan_tiny(monkeypatch):
    meta, io, state = case("hlip_multiscan_tiny")
    config = ItemizedCLIPVisionConfig(**vision_arguments(meta["vision"], max_num_scans=meta["vision"]["max_num_scans"]))
    model = ItemizedCLIPVisionModel(config).eval()
    embeddings = model.embeddings
    assert_close(embeddings.position_embedding, io["init.spatial_posemb"], "initial positions", 1e-6)
    assert_close(embeddings.scan_embedding, io["init.sequential_posemb"], "initial scan table", 1e-6)
    keys = Keys(state)
    mapped = radiology.map_trunk(keys, meta["vision"]["depth"], trunk="", target="")
    keys.check()
    model.load_state_dict(mapped)
    for name in "abc":
        out = model(io[f"in.{name}.volume"])
        assert_close(out.last_hidden_state, io[f"out.{name}.tokens"], f"{name}, tokens")
        assert_close(out.pooler_output, io[f"out.{name}.pooled"], f"{name}, pooled")
    # The reference permutes the scan table in batches, in evaluation too; here only training does.
    embeddings.scan_embedding = embeddings.scan_embedding[io["draw.d.scan_permutation"]]
    out = model(io["in.d.volume"])
    assert_close(out.last_hidden_state, io["out.d.tokens"], "d, tokens")


def test_scan_positions_are_drawn_in_training_only():
    table = sincos_1d(40, 12)
    assert torch.equal(scan_positions(table, 3, False), table[:3])
    torch.manual_seed(0)
    drawn = scan_positions(table, 40, True)
    assert not torch.equal(drawn, table)
    assert torch.equal(drawn.sort(0).values, table.sort(0).values)


@pytest.mark.parametrize("name", ["sn", "sn_same", "ct"])
def test_init_inflate(name):
    meta, tensors, _ = case("init_inflate")
    geometry = meta["cases"][name]
    config = ItemizedCLIPVisionConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        num_channels=1,
        **{"image_size": geometry["img_size"], "patch_size": geometry["patch_size"]},
    )
    state = {key.removeprefix("in."): value for key, value in tensors.items() if key.startswith("in.")}
    inflated = inflate_mae(state, config)
    assert_close(inflated["embeddings.class_embedding"], tensors[f"out.{name}.cls_token"].flatten(), "class token")
    assert_close(
        inflated["embeddings.patch_embedding.weight"], tensors[f"out.{name}.patch_embed.proj.weight"], "patches"
    )
    assert_close(inflated["embeddings.patch_embedding.bias"], tensors[f"out.{name}.patch_embed.proj.bias"], "bias")
    assert_close(inflated["embeddings.position_embedding"], tensors[f"out.{name}.spatial_posemb"][0], "positions")
    if f"out.{name}.series_posemb" in tensors:
        assert_close(sincos_1d(40, 24), tensors[f"out.{name}.series_posemb"][0], "scan table")
