"""Small right files of every kind, ways to damage them, and what reads them: the parts of `fuzz.py`."""

import gzip
import itertools
import json
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

ABSURD = [
    None,
    -1,
    0,
    1,
    2**31,
    10**30,
    -(10**9),
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "\u2028",
    [],
    {},
    True,
]
PACKAGE = Path(__file__).parents[1] / "itemized_clip_hf"


def prepare(folder: Path) -> None:
    """Writes the right files, one folder per family, and loads what reads them."""
    for family, (write, _, _) in FAMILIES.items():
        (folder / family).mkdir()
        write(folder / family)
    for family, (_, _, read) in FAMILIES.items():
        for source in sorted((folder / family).iterdir()):
            fault = read(source)
            if fault:
                raise RuntimeError(f"the undamaged {source.name} of {family} is not sane: {fault}")


def damage(family: str, chance: random.Random, seeds: Path, folder: Path) -> tuple[Path, Callable]:
    """One damaged copy, and what reads it."""
    _, kind, read = FAMILIES[family]
    source = chance.choice(sorted((seeds / family).iterdir()))
    target = folder / source.name
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    victim = (
        chance.choice([file for file in sorted(target.rglob("*")) if file.is_file()]) if target.is_dir() else target
    )
    content = victim.read_bytes()
    structured = victim.suffix in (".yaml", ".json") and chance.random() < 0.7
    if structured:
        content = damage_tree(content, victim.suffix, chance)
    elif victim.suffix in (".csv", ".jsonl", ".yaml", ".json") or kind == "header" and chance.random() < 0.7:
        content = damage_text(content, chance)
    else:
        content = damage_bytes(content, chance)
    victim.write_bytes(content)
    return target, read


def damage_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    way = chance.choice(["bit", "bits", "cut", "zeros", "swap", "number", "head"])
    at = chance.randrange(len(data)) if chance.random() < 0.4 else chance.randrange(min(len(data), 400))
    if way in ("bit", "bits"):
        for _ in range(1 if way == "bit" else 20):
            data[chance.randrange(min(len(data), chance.choice([64, 400, len(data)])))] ^= 1 << chance.randrange(8)
    elif way == "cut":
        del data[chance.randrange(len(data)) :]
    elif way == "zeros":
        length = min(chance.choice([1, 4, 64]), len(data) - at)
        data[at : at + length] = bytes(length)
    elif way == "swap":
        other, length = chance.randrange(len(data)), chance.choice([2, 4, 16])
        first, second = bytes(data[at : at + length]), bytes(data[other : other + length])
        data[at : at + len(second)], data[other : other + len(first)] = second, first
    elif way == "number":
        form, value = chance.choice(
            [("<i", -1), ("<i", 2**31 - 1), ("<f", float("nan")), ("<f", 1e38), ("<d", 1e300), ("<h", -1)]
        )
        piece = struct.pack(form, value)
        data[at : at + len(piece)] = piece
    else:
        data = data[chance.randrange(1, min(len(data), 64)) :]
    return bytes(data)


def damage_text(content: bytes, chance: random.Random) -> bytes:
    """Lines lost, doubled, swapped or lengthened, values replaced, other encodings."""
    way = chance.choice(
        ["bytes", "lose", "double", "swap", "long", "value", "utf-16", "bom", "latin", "nul", "deep", "name"]
    )
    lines = content.split(b"\n")
    at = chance.randrange(min(len(lines), 16))
    if way == "bytes":
        return damage_bytes(content, chance)
    if way == "utf-16":
        return content.decode("latin-1").encode("utf-16")
    if way in ("bom", "latin", "nul"):
        return {
            "bom": b"\xef\xbb\xbf" + content,
            "latin": b"\xe9\xff" + content,
            "nul": content[:9] + b"\0" + content[9:],
        }[way]
    if way == "lose":
        del lines[at]
    elif way == "double":
        lines.insert(at, lines[at])
    elif way == "swap":
        other = chance.randrange(min(len(lines), 16))
        lines[at], lines[other] = lines[other], lines[at]
    elif way == "long":
        lines[at] += chance.choice([b"9", b"x ", b" 1"]) * chance.choice([300, 5000, 200_000])
    elif way == "deep":
        lines[at] = chance.choice([b"[", b'{"a":', b"- "]) * chance.choice([40, 1000, 100_000])
    elif way == "name":
        lines[at] = b"Nonsense" + lines[at]
    else:
        sign = next((s for s in (b":", b"=", b",") if s in lines[at]), b" ")
        value = chance.choice(
            [b"", b"-1", b"0", b"nan", b"1e400", b"9" * 30, b"../../etc/passwd", b"(1,0", b"4 4", b"True"]
        )
        lines[at] = lines[at].split(sign)[0] + sign + b" " + value
    return b"\n".join(lines)


def damage_tree(content: bytes, suffix: str, chance: random.Random) -> bytes:
    """Types swapped, keys lost, renamed or doubled, absurd values and nesting, anywhere in a JSON or YAML file."""
    tree = json.loads(content) if suffix == ".json" else yaml.safe_load(content)
    places = list(_places(tree))
    for _ in range(chance.choice([1, 1, 2])):
        holder, key = chance.choice(places)
        if isinstance(holder, dict) and key not in holder or isinstance(holder, list) and key >= len(holder):
            continue
        way = chance.choice(["absurd", "absurd", "lose", "name", "wrap", "text", "deep"])
        if way == "lose":
            del holder[key]
        elif way == "name" and isinstance(holder, dict):
            holder[chance.choice([f"{key}x", f"{key}"[:-1], "unknown"])] = holder.pop(key)
        elif way == "wrap":
            holder[key] = chance.choice([[holder[key]], {"a": holder[key]}])
        elif way == "text":
            holder[key] = str(holder[key])
        elif way == "deep":
            for _ in range(chance.choice([3, 50])):
                holder[key] = [holder[key]]
        else:
            holder[key] = chance.choice(ABSURD)
    text = json.dumps(tree) if suffix == ".json" else yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text.encode()


def _places(tree):
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(pairs)[:200]:
        yield tree, key
        yield from _places(value)


def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1500, (6, 12, 14)).astype(np.int16)


def write_nifti(folder: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(voxels().T, np.diag([-1.5, 1.25, 4, 1]))
    for name in ("a.nii", "b.nii.gz"):
        nibabel.save(image, folder / name)


def write_itk(folder: Path) -> None:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(voxels())
    image.SetSpacing((1.5, 1.25, 4))
    for name, compressed in (("a.nrrd", False), ("b.nrrd", True), ("c.mha", False), ("d.mha", True)):
        SimpleITK.WriteImage(image, str(folder / name), compressed)


def write_dicom(folder: Path) -> None:
    from dicom_files import make_grid, make_series, save

    save(make_series(make_grid()), folder / "series")


def write_zip(folder: Path) -> None:
    write_dicom(folder)
    with zipfile.ZipFile(folder / "dicom.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((folder / "series").iterdir()):
            archive.write(file, file.name)
    shutil.rmtree(folder / "series")


def write_tables(folder: Path) -> None:
    rows = [{"id": f"S{i}", "images": f"s{i}.nii.gz", "items": [f"finding {i}", "mass"]} for i in range(6)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "b.json").write_text(json.dumps(rows))
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(map(json.dumps, rows)))
    (folder / "d.csv").write_text("id,images,items\n" + "\n".join(f"S{i},s{i}.nii.gz,finding {i}" for i in range(6)))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "e.parquet")


def copy_all(pattern: str) -> Callable:
    def write(folder: Path) -> None:
        for file in sorted(PACKAGE.parent.glob(pattern)):
            shutil.copy(file, folder / file.name)

    return write


def write_prompts(folder: Path) -> None:
    prompts = {"mass": ["a mass", "there is a mass"], "bleeding": "bleeding", "No": "no finding"}
    (folder / "a.json").write_text(json.dumps(prompts))
    (folder / "b.yaml").write_text(yaml.safe_dump(prompts))
    (folder / "c.yaml").write_text(yaml.safe_dump(["a mass", "bleeding"]))


def tiny_model():
    from tiny_models import ITEMS, tiny_config

    from itemized_clip_hf import ItemizedCLIPModel, ItemizedCLIPProcessor
    from itemized_clip_hf.models.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(ITEMS, 120, 24)
    processor = ItemizedCLIPProcessor.from_domain("brain-mri", tokenizer, scan_size=[8, 16, 16], in_plane_size=18)
    torch.manual_seed(0)
    return ItemizedCLIPModel(tiny_config(len(tokenizer))), processor


def write_reports(folder: Path) -> None:
    for number, report in enumerate(REPORTS):
        (folder / f"{number}.txt").write_text(report)


REPORTS = (
    "INDICATION: headache.\nFINDINGS: A 3 cm mass in the left frontal lobe with surrounding edema. No hemorrhage, no shift.\n"
    "IMPRESSION:\n1. Left frontal mass.\n2. Old infarct; follow-up in 3 months is recommended.",
    "Pneumothorax: none\nEffusion | small, left\n[x] Nodule\n[ ] Mass\n- cardiomegaly\n- no consolidation",
    "<p>Lungs are clear.</p><p>Heart size is normal.</p>&nbsp;No acute disease.",
)


def write_models(folder: Path) -> None:
    model, processor = tiny_model()
    for name, size in (("whole", "1GB"), ("parts", "40KB")):
        model.save_pretrained(folder / name, max_shard_size=size)
        processor.save_pretrained(folder / name)


def write_adapters(folder: Path) -> None:
    from itemized_clip_hf.models.adapters import add_lora, save_adapters

    model, processor = tiny_model()
    add_lora(model, "both")
    save_adapters(model, folder / "adapters")
    processor.save_pretrained(folder / "adapters")


def write_checkpoints(folder: Path) -> None:
    state = tiny_model()[0].vision_model.encoder.state_dict()
    torch.save({"state_dict": state, "epoch": 3}, folder / "a.pt")
    torch.save(state, folder / "b.pt", _use_new_zipfile_serialization=False)


def read_scans(path: Path) -> str:
    from itemized_clip_hf.data.checks import check_study
    from itemized_clip_hf.data.readers.read import read_study
    from itemized_clip_hf.data.study import Study

    study = read_study(str(path), "S")
    if not isinstance(study, Study) or not study.scans:
        return "no scan"
    check_study(study, None)
    for scan in study.scans.values():
        if scan.array.ndim != 3 or min(scan.array.shape) < 2 or scan.array.dtype.kind not in "iuf":
            return f"array {scan.array.shape} {scan.array.dtype}"
        if scan.affine is not None and not (
            np.isfinite(scan.affine).all() and 1e-3 <= min(scan.spacing) <= max(scan.spacing) <= 1e3
        ):
            return f"spacing {scan.spacing}"
    return ""


def read_rows(path: Path) -> str:
    from itemized_clip_hf.data.studies.records import read_records

    records = read_records(path)
    return "" if [records.id_of(i) for i in range(len(records))] else "no rows"


def read_recipe_file(path: Path) -> str:
    from itemized_clip_hf.recipes import load_recipe

    recipe = load_recipe(str(path))
    for name in recipe.variants:
        recipe.variant(name).architecture()
    return ""


def read_domain_file(path: Path) -> str:
    from itemized_clip_hf.domains import read_domain

    domain = read_domain(path)
    domain.is_normal(["Study is unremarkable"])
    return "" if all(isinstance(text, str) for texts in domain.prompts.values() for text in texts) else "prompts"


def read_protocol_file(path: Path) -> str:
    from itemized_clip_hf.evaluation.protocols import load_protocol

    protocol = load_protocol(path)
    prompts = protocol.choose_prompts()
    protocol.name_scan("a-b")
    return "" if all(prompts.values()) else "a finding without prompts"


def read_card_file(path: Path) -> str:
    from itemized_clip_hf.hub.card import CardFacts, card_text

    return "" if len(card_text(CardFacts.read(path))) > 500 else "empty card"


def read_prompt_file(path: Path) -> str:
    from itemized_clip_hf.cli._studies import choose_prompts

    found = choose_prompts((), str(path), None)
    return "" if found and all(text.strip() for texts in found.values() for text in texts) else "blank prompts"


def read_report(path: Path) -> str:
    from itemized_clip_hf.data.reports.itemize import itemize_report

    report = path.read_bytes().decode("utf-8", "replace")[:100_000]  # 30 times what a long one has
    found = itemize_report(report, "brain-mri")
    places = sorted([span for span in found.spans if span] + [(part.start, part.end) for part in found.removed])
    inside = all(0 <= start <= end <= len(report) for start, end in places)
    return (
        ""
        if inside and all(first[1] <= second[0] for first, second in itertools.pairwise(places))
        else "places overlap"
    )


def read_model(path: Path) -> str:
    from itemized_clip_hf.models.load import load

    model, processor = load(path, "cpu")
    return _score(model, processor)


def read_adapters(path: Path) -> str:
    from itemized_clip_hf.models.adapters import attach_adapters, merge_adapters
    from itemized_clip_hf.models.load import load_processor

    model, _ = tiny_model()
    attach_adapters(model, path)
    return _score(merge_adapters(model).eval(), load_processor(str(path)))


def _score(model, processor) -> str:
    with torch.no_grad():
        tokens = torch.tensor(processor.encode_text(["left frontal mass"])["input_ids"])
        size = model.config.vision_config
        pixels = torch.zeros(1, 1, size.num_channels, *size.image_size)
        out = model(pixel_values=pixels, input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return "" if torch.isfinite(out.logits_per_image).all() else "logits are not finite"


def read_weights(path: Path) -> str:
    from itemized_clip_hf.conversion.checkpoint import read_state_dict

    state = read_state_dict(path)
    return "" if all(tensor.layout == torch.strided for tensor in state.values()) else "no plain tensors"


FAMILIES: dict[str, tuple[Callable, str, Callable]] = {
    "nifti": (write_nifti, "bytes", read_scans),
    "dicom": (write_dicom, "bytes", read_scans),
    "zip": (write_zip, "bytes", read_scans),
    "itk": (write_itk, "header", read_scans),
    "tables": (write_tables, "bytes", read_rows),
    "recipes": (copy_all("itemized_clip_hf/recipes/*.yaml"), "text", read_recipe_file),
    "domains": (copy_all("itemized_clip_hf/domains/*.yaml"), "text", read_domain_file),
    "protocols": (copy_all("itemized_clip_hf/evaluation/protocols/[c-r]*.yaml"), "text", read_protocol_file),
    "cards": (copy_all("hub_cards/*.yaml"), "text", read_card_file),
    "prompts": (write_prompts, "text", read_prompt_file),
    "reports": (write_reports, "header", read_report),
    "models": (write_models, "bytes", read_model),
    "adapters": (write_adapters, "bytes", read_adapters),
    "checkpoints": (write_checkpoints, "bytes", read_weights),
}
