"""The recorded models, built through the converter."""

from golden_cases import case

from itemized_clip_hf import ItemizedCLIPConfig
from itemized_clip_hf.conversion import convert_checkpoint


def scopes(vision: dict) -> list[str]:
    found = []
    for layer in range(vision["depth"]):
        named = [scope for scope in ("study", "scan", "slice") if layer in vision.get(f"{scope}_attn_indexes", ())]
        found.append(named[0] if named else "scan")
    return found


def vision_arguments(vision: dict, **more) -> dict:
    return {
        "hidden_size": vision["embed_dim"],
        "num_hidden_layers": vision["depth"],
        "num_attention_heads": vision["num_heads"],
        "intermediate_size": int(vision["embed_dim"] * vision["mlp_ratio"]),
        "num_channels": vision["in_chans"],
        "image_size": vision["img_size"],
        "patch_size": vision["patch_size"],
        "attention_scopes": scopes(vision),
        **more,
    }


def radiology_model(name: str, domain: str, **vision):
    meta, io, state = case(name)
    text = meta["text"]
    sizes = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "pad_token_id",
        "layer_norm_eps",
    )
    config = ItemizedCLIPConfig(
        vision_config=vision_arguments(meta["vision"], **vision),
        text_config={"model_type": "bert", **{size: text[size] for size in sizes}},
        projection_dim=meta["clip_dim"],
        num_pooler_heads=8,
    )
    return meta, io, convert_checkpoint({f"module.{k}": v for k, v in state.items()}, domain, config=config)


def picture_model():
    meta, io, state = case("model2d_tiny")
    vision, text = meta["config"]["vision_cfg"], meta["config"]["text_cfg"]
    config = ItemizedCLIPConfig(
        vision_config={
            "hidden_size": vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "intermediate_size": 4 * vision["width"],
            "image_size": [1, vision["image_size"], vision["image_size"]],
            "patch_size": [1, vision["patch_size"], vision["patch_size"]],
        },
        text_config={
            "model_type": "clip_text_model",
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": 4 * text["width"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": "gelu",
        },
        projection_dim=meta["config"]["embed_dim"],
    )
    return meta, io, convert_checkpoint(state, "remote-sensing", config=config)
