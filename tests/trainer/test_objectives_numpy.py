"""The objectives and their pooler in double precision against the numpy formulation of `reference_numpy`."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest
import reference_numpy as reference
import torch
from golden_cases import case as golden
from golden_cases import names as golden_names

from itemized_clip_hf.conversion import convert_pooler
from itemized_clip_hf.trainer.objectives import load_objective

INITIAL_SCALE = 2.65926
TERMS = ("ila", "mps", "kta", "iis")
WEIGHTS = {"ila_weight": 1.0, "mps_weight": 0.3, "kta_weight": 0.7, "iis_weight": 0.4}
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 4: 18.47, 8: 26.12, 14: 36.12}


@dataclass
class Case:
    """Inputs of an objective as numpy arrays, with the draws already made."""

    image_embeds: np.ndarray
    image_tokens: np.ndarray
    item_embeds: np.ndarray
    item_mask: np.ndarray
    is_normal: np.ndarray | None
    logit_scale: float
    logit_bias: float
    pooler: reference.Pooler
    negatives: np.ndarray
    keep_mask: np.ndarray | None = None
    token_mask: np.ndarray | None = None


def table(slots_of, slots):
    """Table of 5.1 from `slots_of[i][j]`, the slot that row i takes from study j."""
    batch = len(slots_of)
    rows = np.zeros((batch, batch + slots - 1), int)
    for i in range(batch):
        for c in range(batch + slots - 1):
            if c < i:
                rows[i, c] = c * slots + slots_of[i][c]
            elif c < i + slots:
                rows[i, c] = i * slots + c - i
            else:
                j = c - slots + 1
                rows[i, c] = j * slots + slots_of[i][j]
    return rows


@lru_cache
def make_case(
    batch=3,
    slots=3,
    tokens=9,
    heads=2,
    width=8,
    items=None,
    normal=None,
    keep=None,
    valid=None,
    scale=INITIAL_SCALE,
    bias=-10.0,
    seed=0,
):
    """`items`: real slots of each study, a count or the slots; `valid`: number of real tokens of each study."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((batch, slots), bool)
    for i, entry in enumerate(items or (slots,) * batch):
        mask[i, list(range(entry)) if isinstance(entry, int) else list(entry)] = True
    pooler = reference.Pooler.random(width, heads, rng)
    drawn = [[rng.choice(np.flatnonzero(mask[j])) for j in range(batch)] for _ in range(batch)]
    return Case(
        image_embeds=rng.normal(size=(batch, width)),
        image_tokens=rng.normal(size=(batch, tokens, width)),
        item_embeds=rng.normal(size=(batch, slots, width)),
        item_mask=mask,
        is_normal=None if normal is None else np.array(normal, bool),
        logit_scale=scale,
        logit_bias=bias,
        pooler=pooler,
        negatives=table(drawn, slots),
        keep_mask=None if keep is None else rng.random((batch, heads, batch + slots - 1, tokens)) < keep,
        token_mask=None if valid is None else np.arange(tokens) < np.array(valid)[:, None],
    )


def torch_pooler(pooler, dtype=torch.double):
    return convert_pooler({k: torch.tensor(v) for k, v in pooler.parameters.items()}, num_heads=pooler.heads).to(dtype)


def call(objective, case, dtype=torch.double, tokens=True):
    """The package's result and the leaves it was computed from."""
    leaves = {
        name: torch.tensor(getattr(case, name), dtype=dtype, requires_grad=True)
        for name in ("image_embeds", "image_tokens", "item_embeds", "logit_scale", "logit_bias")
    }
    pooler = torch_pooler(case.pooler, dtype)
    draws = objective.draw(torch.tensor(case.item_mask), case.image_tokens.shape[1], case.pooler.heads)
    if draws.negatives is not None:
        draws.negatives = torch.tensor(case.negatives)
        draws.keep_mask = None if case.keep_mask is None else torch.tensor(case.keep_mask)
    more = {} if case.token_mask is None else {"token_mask": torch.tensor(case.token_mask)}
    out = objective(
        **leaves,
        item_mask=torch.tensor(case.item_mask),
        is_normal=None if case.is_normal is None else torch.tensor(case.is_normal),
        pooler=pooler,
        draws=draws,
        **more,
    )
    return out, leaves, pooler


def itemized(**arguments):
    return load_objective("itemized_clip", **{**WEIGHTS, "key_token_rate": 0.3, **arguments})


def values(objective, case):
    return {name: value.item() for name, value in call(objective, case)[0].items()}


def expect(name, case, **arguments):
    """The numpy result of the objective called `name`."""
    if name == "itemized_clip":
        return reference.itemized_clip(**vars(case), **{**WEIGHTS, "key_token_rate": 0.3, **arguments})
    given = vars(case)
    if name == "mps":
        wanted = ("image_embeds", "item_embeds", "item_mask", "is_normal", "logit_scale", "logit_bias")
        return reference.mps(**{k: given[k] for k in wanted}, **arguments)
    return reference.flair(**{k: v for k, v in given.items() if k not in ("is_normal", "keep_mask")})


def assert_same(actual, expected, tolerance=1e-9):
    """Equal within the tolerance, relative for values above one."""
    assert abs(actual - expected) <= tolerance * max(1.0, abs(expected)), (actual, expected)


# --- the pooler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads, width, texts, tokens, keep", [(1, 6, 1, 1, None), (2, 8, 3, 7, 0.6), (8, 16, 40, 5, 0.3)]
)
def test_pooler(heads, width, texts, tokens, keep):
    """Features and the head-averaged attention, whose rows sum to less than one."""
    rng = np.random.default_rng(texts)
    pooler = reference.Pooler.random(width, heads, rng)
    queries, visual = rng.normal(size=(2, texts, width)), rng.normal(size=(2, tokens, width))
    mask = None if keep is None else rng.random((2, heads, texts, tokens)) < keep
    with torch.no_grad():
        features, attention = torch_pooler(pooler)(
            torch.tensor(queries),
            torch.tensor(visual),
            keep_mask=None if mask is None else torch.tensor(mask),
            output_attentions=True,
        )
    for i in range(2):
        expected = pooler(queries[i], visual[i], None if mask is None else mask[i])
        np.testing.assert_allclose(features[i].numpy(), expected[0], atol=1e-10)
        np.testing.assert_allclose(attention[i].numpy(), expected[1], atol=1e-10)
    assert (attention.sum(-1) < 1).all()


def test_pooler_with_everything_hidden_returns_the_output_bias():
    case = make_case()
    queries, visual = torch.tensor(case.item_embeds), torch.tensor(case.image_tokens)
    keep = torch.zeros(3, 2, 3, 9, dtype=torch.bool)
    with torch.no_grad():
        features, attention = torch_pooler(case.pooler)(queries, visual, keep_mask=keep, output_attentions=True)
    bias = case.pooler.parameters["attn.out_proj.bias"]
    np.testing.assert_allclose(features.numpy(), np.broadcast_to(bias, features.shape), atol=1e-12)
    assert (attention == 0).all()


# --- every term and the total ---------------------------------------------------------------------------------------

RAGGED = {"batch": 4, "slots": 4, "items": (4, 1, 3, 2)}
SWEEP = {
    "plain": ({}, {}),
    "one_study": ({"batch": 1, "items": (2,)}, {}),
    "one_slot": ({"batch": 4, "slots": 1}, {}),
    "one_study_one_slot_one_token": ({"batch": 1, "slots": 1, "tokens": 1}, {}),
    "one_token": ({"tokens": 1, "keep": 0.7}, {}),
    "one_head": ({"heads": 1, "width": 5, "keep": 0.8}, {}),
    "eight_heads": ({"heads": 8, "width": 16, "keep": 0.9}, {}),
    "many_studies": ({"batch": 9, "slots": 2, "tokens": 4, "items": (1, 2) * 4 + (1,)}, {}),
    "ragged": (RAGGED, {}),
    "mask_with_holes": ({"slots": 4, "items": ((1, 3), (0,), (0, 2, 3))}, {}),
    "normals": ({**RAGGED, "normal": (1, 0, 1, 1), "bias": -1.0}, {}),
    "all_normal": ({**RAGGED, "normal": (1, 1, 1, 1), "bias": -1.0}, {}),
    "normal_check_off": ({**RAGGED, "normal": (1, 0, 1, 1), "bias": -1.0}, {"normal_check": False}),
    "keep_half": ({**RAGGED, "keep": 0.5, "heads": 8, "width": 16, "tokens": 12}, {}),
    "keep_nothing": ({"keep": 0.0}, {"key_token_rate": 1.0}),
    "one_key_token": ({"tokens": 12, "keep": 0.9}, {"key_token_rate": 0.01}),
    "all_key_tokens": ({"heads": 1, "keep": 0.3}, {"key_token_rate": 1.0}),
    "key_token_rounding_at_20": ({"tokens": 20, "batch": 2}, {"key_token_rate": 0.35}),
    "key_token_rounding_at_50": ({"tokens": 50, "batch": 2, "slots": 1}, {"key_token_rate": 0.58}),
    "padded_tokens": ({"valid": (9, 1, 4)}, {"key_token_rate": 0.5}),
    "padded_tokens_all_key": ({"heads": 1, "valid": (9, 5, 2), "keep": 0.4}, {"key_token_rate": 1.0}),
    "padded_tokens_rounding": ({"tokens": 50, "batch": 2, "slots": 1, "valid": (20, 50)}, {"key_token_rate": 0.58}),
    "factor_1": ({**RAGGED, "bias": -2.0}, {"worst_positive_factor": 1.0}),
    "factor_3": ({**RAGGED, "bias": -2.0}, {"worst_positive_factor": 3.0}),
    "factor_3_strict": ({**RAGGED, "bias": -2.0}, {"worst_positive_factor": 3.0, "worst_positive_select": "strict"}),
    "large_scale": ({**RAGGED, "scale": math.log(60), "bias": -12.0, "keep": 0.9}, {"worst_positive_factor": 2.0}),
    "large_scale_strict": (
        {**RAGGED, "scale": math.log(60), "bias": -12.0, "keep": 0.9},
        {"worst_positive_factor": 2.0, "worst_positive_select": "strict"},
    ),
    "no_ila": (RAGGED, {"ila_weight": 0.0, "kta_weight": 2.0}),
    "no_mps_no_iis": (RAGGED, {"mps_weight": 0.0, "iis_weight": 0.0}),
    "no_kta": ({**RAGGED, "keep": 0.8}, {"kta_weight": 0.0, "ila_weight": 0.25}),
    "everything": (
        {**RAGGED, "normal": (0, 1, 1, 0), "valid": (7, 9, 5, 8), "heads": 4, "keep": 0.85, "bias": -3.0},
        {"ila_weight": 0.6, "mps_weight": 0.2, "kta_weight": 1.3, "iis_weight": 2.0, "worst_positive_factor": 1.7},
    ),
    "everything_strict": (
        {**RAGGED, "normal": (0, 1, 1, 0), "valid": (7, 9, 5, 8), "heads": 4, "keep": 0.85, "bias": -3.0, "seed": 1},
        {"worst_positive_factor": 1.7, "worst_positive_select": "strict"},
    ),
}


@pytest.mark.parametrize("name", SWEEP)
def test_terms(name):
    inputs, arguments = SWEEP[name]
    case = make_case(**inputs)
    expected = expect("itemized_clip", case, **arguments)
    assert expected.margin > 1e-7, "the selections of this case are too close to call"
    actual = values(itemized(**arguments), case)
    active = {term for term in TERMS if {**WEIGHTS, **arguments}[f"{term}_weight"]}
    assert {"loss", *active} <= set(actual)
    for term in active:
        assert_same(actual[term], expected.terms[term])
    assert_same(actual["loss"], expected.loss)


def test_sweep_reaches_both_selections():
    """With a large scale the released rule leaves the worst real positive of some study."""
    inputs, arguments = SWEEP["large_scale"]
    strict = expect("itemized_clip", make_case(**inputs), **{**arguments, "worst_positive_select": "strict"})
    assert strict.columns != expect("itemized_clip", make_case(**inputs), **arguments).columns


@pytest.mark.parametrize("normal, check", [(None, True), ((1, 0, 1, 1), True), ((1, 0, 1, 1), False)])
@pytest.mark.parametrize("bias", [-10.0, -1.0])
def test_mps(normal, check, bias):
    case = make_case(**RAGGED, normal=normal, bias=bias)
    expected = expect("mps", case, normal_check=check)
    actual = values(load_objective("mps", normal_check=check), case)
    assert set(actual) == {"loss", "mps"}
    assert_same(actual["loss"], expected.loss)
    assert_same(actual["mps"], expected.terms["mps"])


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"batch": 1, "slots": 4},
        {"batch": 4, "slots": 1, "bias": -1.0},
        {"batch": 5, "slots": 2, "heads": 4, "bias": -2.0},
        {"valid": (9, 1, 4)},
        {"normal": (1, 1, 0), "bias": -1.0},
    ],
)
def test_flair(inputs):
    case = make_case(**inputs)
    expected = expect("flair", case)
    actual = values(load_objective("flair"), case)
    assert set(actual) == {"loss", "tcs", "mps"}
    for term in ("tcs", "mps"):
        assert_same(actual[term], expected.terms[term])
    assert_same(actual["loss"], expected.loss)


def test_flair_drops_padded_slots():
    case = make_case(**RAGGED)
    full = replace(case, item_mask=np.ones_like(case.item_mask))
    assert values(load_objective("flair"), case) != values(load_objective("flair"), full)
    assert_same(values(load_objective("flair"), case)["loss"], expect("flair", case).loss)


RECORDED = [name for part in ("loss_2d", "loss_rad", "baseline_[fm]") for name in golden_names(f"{part}*")]


@pytest.mark.parametrize("name", [name for name in RECORDED if "world" not in name])
def test_numpy_formulation_against_the_recorded_numbers(name):
    """The other side of the comparison: values and selections that were recorded in float32."""
    meta, tensors, _ = golden(name)
    config = meta["config"]
    arrays = {k: v.double().numpy() for k, v in tensors.items()}
    batch, slots = config["batch"], config["num_items"]
    case = Case(
        image_embeds=arrays["in.image_features"] if "in.image_features" in arrays else np.ones((batch, config["dim"])),
        image_tokens=arrays.get("in.image_tokens"),
        item_embeds=arrays["in.text_features"].reshape(batch, slots, -1),
        item_mask=arrays["in.textmask"] > 0 if "in.textmask" in arrays else np.ones((batch, slots), bool),
        is_normal=arrays["in.normals"].reshape(-1) > 0 if config.get("variant") == "rad" else None,
        logit_scale=math.log(config["logit_scale"]),
        logit_bias=config["logit_bias"],
        pooler=reference.Pooler(
            config.get("heads"),
            {k.removeprefix("param.visual_proj."): v for k, v in arrays.items() if k.startswith("param.")},
        ),
        negatives=tensors["draw.neg_index"].numpy() if "draw.neg_index" in tensors else None,
        keep_mask=tensors["draw.keep_mask"].bool().numpy() if "draw.keep_mask" in tensors else None,
    )
    if name.startswith("baseline_mps"):
        result = expect("mps", case)
    elif name.startswith("baseline_flair"):
        result = expect("flair", case)
        if not config["mps_on"]:
            result.loss = result.terms["tcs"]
    else:
        on = config["mps_on"]
        result = expect(
            "itemized_clip",
            case,
            ila_weight=config["ila_weight"] if on else 1.0,
            mps_weight=config["mps_weight"] if on else 0.0,
            kta_weight=config["kta_weight"],
            iis_weight=config["iis_weight"],
            key_token_rate=config["key_token_rate"],
            worst_positive_factor=config["uwp_factor"],
            normal_check=not config.get("no_normal_check", False),
        )
        for term in TERMS if on else ("kta",):
            if f"out.{term}" in arrays:
                assert_same(result.terms[term], float(arrays[f"out.{term}"]), 1e-5)
        if "mid.upweighted_column" in tensors and config["uwp_factor"] > 1:
            assert result.columns == tensors["mid.upweighted_column"].tolist()
        if "mid.key_token_mask" in tensors:
            assert np.array_equal(np.array(result.key_tokens), tensors["mid.key_token_mask"].bool().numpy())
    assert_same(result.loss, float(arrays["out.total"]), 1e-5)


# --- gradients ------------------------------------------------------------------------------------------------------

GRADIENT_CASES = {
    "reference": ("itemized_clip", {"worst_positive_factor": 1.7}),
    "strict": ("itemized_clip", {"worst_positive_factor": 1.7, "worst_positive_select": "strict"}),
    "flair": ("flair", {}),
    "mps": ("mps", {}),
}


def gradients(leaves, pooler):
    """Every gradient under the name its input has in `Case` or in the pooler's parameters."""
    found = {name: leaf.grad for name, leaf in leaves.items()}
    for part in "qkv":
        norm = getattr(pooler, f"layer_norm_{part}")
        found[f"ln_{part}.weight"], found[f"ln_{part}.bias"] = norm.weight.grad, norm.bias.grad
    projections = [pooler.q_proj, pooler.k_proj, pooler.v_proj]
    if pooler.out_proj.weight.grad is not None:
        found["attn.in_proj_weight"] = torch.cat([projection.weight.grad for projection in projections])
        found["attn.in_proj_bias"] = torch.cat([projection.bias.grad for projection in projections])
        found["attn.out_proj.weight"], found["attn.out_proj.bias"] = (
            pooler.out_proj.weight.grad,
            pooler.out_proj.bias.grad,
        )
    return {name: gradient.numpy() for name, gradient in found.items() if gradient is not None}


def moved(case, name, step):
    """The case with `step` added to one of its inputs or pooler parameters."""
    if name in case.pooler.parameters:
        parameters = {**case.pooler.parameters, name: case.pooler.parameters[name] + step}
        return replace(case, pooler=reference.Pooler(case.pooler.heads, parameters))
    return replace(case, **{name: getattr(case, name) + step})


@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients(name):
    """Autograd of the package against central differences of the numpy loss, where no selection flips."""
    objective_name, arguments = GRADIENT_CASES[name]
    case = make_case(
        batch=3,
        slots=2,
        tokens=6,
        items=(2, 1, 2),
        normal=(1, 0, 1),
        valid=(6, 4, 5),
        keep=None if name == "flair" else 0.8,
        bias=-3.0,
        seed=3,
    )
    objective = itemized(**arguments) if objective_name == "itemized_clip" else load_objective(objective_name)
    out, leaves, pooler = call(objective, case)
    out["loss"].backward()
    found = gradients(leaves, pooler)
    inputs = list(leaves) + ([] if name == "mps" else list(case.pooler.parameters))
    if name == "mps":
        inputs.remove("image_tokens")
    centre, step, rng = expect(objective_name, case, **arguments), 1e-5, np.random.default_rng(7)
    for key in inputs:
        shape = np.shape(getattr(case, key)) if hasattr(case, key) else case.pooler.parameters[key].shape
        coordinates = rng.choice(int(np.prod(shape)), size=min(4, int(np.prod(shape))), replace=False)
        directions = [np.eye(1, int(np.prod(shape)), n).reshape(shape) for n in coordinates]
        directions.append(rng.normal(size=shape) / math.sqrt(np.prod(shape)))
        for direction in directions:
            above = expect(objective_name, moved(case, key, step * direction), **arguments)
            below = expect(objective_name, moved(case, key, -step * direction), **arguments)
            assert above.same_selection(centre) and below.same_selection(centre)
            difference = (above.loss - below.loss) / (2 * step)
            assert abs(float(np.sum(found[key] * direction)) - difference) < 1e-6 * max(1.0, abs(difference)), key


def test_padding_gets_no_gradient():
    case = make_case(**RAGGED, valid=(9, 4, 7, 1), keep=0.8, bias=-3.0)
    out, leaves, _ = call(itemized(worst_positive_select="strict"), case)
    out["loss"].backward()
    assert (leaves["item_embeds"].grad.numpy()[~case.item_mask] == 0).all()
    assert (leaves["image_tokens"].grad.numpy()[~case.token_mask] == 0).all()
    assert (leaves["item_embeds"].grad.numpy()[case.item_mask] != 0).any(-1).all()
    assert (leaves["image_tokens"].grad.numpy()[case.token_mask] != 0).any()


def test_only_mps_reaches_the_global_feature():
    out, leaves, _ = call(itemized(mps_weight=0.0), make_case())
    out["loss"].backward()
    assert leaves["image_embeds"].grad is None or (leaves["image_embeds"].grad == 0).all()


# --- draws ----------------------------------------------------------------------------------------------------------


def generator(seed):
    return torch.Generator().manual_seed(seed)


MASKS = {
    "full": np.ones((4, 3), bool),
    "ragged": np.arange(5) < np.array([[5], [1], [3], [2]]),
    "holes": np.array([[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 0, 1]], bool),
    "one_study": np.array([[1, 1, 0]], bool),
    "one_slot": np.ones((3, 1), bool),
}


@pytest.mark.parametrize("mask", MASKS)
def test_table_layout(mask):
    """Column c of row i holds study c, the own slots or study c - K + 1; drawn items are real."""
    mask = MASKS[mask]
    batch, slots = mask.shape
    for seed in range(20):
        negatives = load_objective("itemized_clip").draw(torch.tensor(mask), 4, 2, generator=generator(seed)).negatives
        assert negatives.shape == (batch, batch + slots - 1) and not negatives.is_floating_point()
        rows = negatives.numpy()
        assert (np.diff(rows, axis=1) > 0).all()
        for i in range(batch):
            assert rows[i, i : i + slots].tolist() == list(range(i * slots, (i + 1) * slots))
            others = np.delete(rows[i], np.arange(i, i + slots))
            assert (others // slots).tolist() == [j for j in range(batch) if j != i]
            assert mask.reshape(-1)[others].all()


def drawn_slots(name, mask, repeats, seed=0):
    """Slots (repeats, B, B) that every row took from every study; -1 on the diagonal."""
    batch, slots = mask.shape
    objective, source = load_objective(name, **({"keep_rate": 1.0} if name == "itemized_clip" else {})), generator(seed)
    found = np.full((repeats, batch, batch), -1)
    for n in range(repeats):
        rows = objective.draw(torch.tensor(mask), 1, 1, generator=source).negatives.numpy()
        for i in range(batch):
            others = np.delete(rows[i], np.arange(i, i + slots))
            found[n, i, others // slots] = others % slots
    return found


def chi_square(samples, cells):
    counts = np.bincount(samples, minlength=cells)
    assert len(counts) == cells
    expected = len(samples) / cells
    return float(((counts - expected) ** 2 / expected).sum())


def test_negatives_are_uniform_and_independent():
    """Uniform over the real items, independent between the rows of one study and the studies of one row."""
    found, counts = drawn_slots("itemized_clip", MASKS["ragged"], 1500), (5, 1, 3, 2)
    for i in range(4):
        for j in range(4):
            if i != j and counts[j] > 1:
                assert chi_square(found[:, i, j], counts[j]) < CHI_SQUARE_999[counts[j] - 1]
    # two rows that draw from study 2, then row 1 drawing from studies 0 and 2
    assert chi_square(found[:, 0, 2] * 3 + found[:, 1, 2], 9) < CHI_SQUARE_999[8]
    assert chi_square(found[:, 1, 0] * 3 + found[:, 1, 2], 15) < CHI_SQUARE_999[14]
    # one draw and the next
    assert chi_square(found[:-1, 0, 2] * 3 + found[1:, 0, 2], 9) < CHI_SQUARE_999[8]


def test_flair_draws_over_every_slot():
    found = drawn_slots("flair", MASKS["full"], 800)
    for i, j in ((0, 1), (2, 0), (3, 2)):
        assert chi_square(found[:, i, j], 3) < CHI_SQUARE_999[2]
    assert load_objective("flair").draw(torch.tensor(MASKS["full"]), 4, 2).keep_mask is None


def test_draws_follow_the_generator():
    objective, mask = load_objective("itemized_clip", keep_rate=0.6), torch.tensor(MASKS["ragged"])
    first, again, other = (objective.draw(mask, 16, 2, generator=generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.negatives, again.negatives) and torch.equal(first.keep_mask, again.keep_mask)
    assert not torch.equal(first.negatives, other.negatives) and not torch.equal(first.keep_mask, other.keep_mask)


@pytest.mark.parametrize("rate", [0.9, 0.6, 0.2])
def test_keep_rate(rate):
    """Every (study, head, text, token) is kept with the same probability, by itself."""
    mask = torch.tensor(MASKS["ragged"])
    keep = load_objective("itemized_clip", keep_rate=rate).draw(mask, 200, 4, generator=generator(0)).keep_mask
    assert keep.shape == (4, 4, 8, 200)
    kept = keep.double()
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    deviation = math.sqrt(rate * (1 - rate))
    for axes in ((0, 1, 2, 3), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2), (3,)):
        mean, samples = kept.mean(axes), math.prod(kept.shape[axis] for axis in axes)
        assert ((mean - rate).abs() < 4.5 * deviation / math.sqrt(samples)).all(), axes
    for axis in range(4):
        a, b = kept.narrow(axis, 0, kept.shape[axis] - 1), kept.narrow(axis, 1, kept.shape[axis] - 1)
        correlation = ((a - rate) * (b - rate)).mean() / deviation**2
        assert abs(correlation) < 4.5 / math.sqrt(a.numel()), axis


def test_nothing_is_hidden_at_keep_rate_1():
    assert load_objective("itemized_clip", keep_rate=1.0).draw(torch.tensor(MASKS["full"]), 4, 2).keep_mask is None


def test_masks_that_hide_nothing_change_nothing():
    case = make_case(**RAGGED)
    seen = replace(case, keep_mask=np.ones((4, 2, 7, 9), bool), token_mask=np.ones((4, 9), bool))
    for rate in (0.05, 0.34, 1.0):
        plain, masked = (values(itemized(key_token_rate=rate), c) for c in (case, seen))
        for term, value in plain.items():
            assert_same(masked[term], value, 1e-12)


def test_draws_are_made_where_none_are_given():
    case = make_case(**RAGGED)
    out = itemized(keep_rate=0.5)(
        *(torch.tensor(x) for x in (case.image_embeds, case.image_tokens, case.item_embeds, case.item_mask)),
        None,
        torch.tensor(case.logit_scale),
        torch.tensor(case.logit_bias),
        torch_pooler(case.pooler),
    )
    assert set(out) == {"loss", *TERMS} and all(torch.isfinite(value) for value in out.values())


# --- properties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["reference", "strict"])
def test_order_of_the_items_does_not_matter(select):
    """The items of study 1 in another order, with the table and the hidden tokens following."""
    case, order, study = make_case(**RAGGED, keep=0.8, bias=-3.0, normal=(0, 1, 1, 0)), [2, 0, 3, 1], 2
    slots = case.item_mask.shape[1]
    new_place = {study * slots + old: study * slots + new for new, old in enumerate(order)}
    items, mask, keep, rows = (x.copy() for x in (case.item_embeds, case.item_mask, case.keep_mask, case.negatives))
    items[study], mask[study] = items[study][order], mask[study][order]
    own = slice(study, study + slots)
    keep[study][:, own] = keep[study][:, own][:, order]
    for i in range(len(rows)):
        if i != study:
            rows[i] = [new_place.get(row, row) for row in rows[i]]
    shuffled = replace(case, item_embeds=items, item_mask=mask, keep_mask=keep, negatives=rows)
    before, after = (values(itemized(worst_positive_select=select), c) for c in (case, shuffled))
    for term in ("loss", *TERMS):
        assert_same(after[term], before[term], 1e-11)


@pytest.mark.parametrize("contents", ["zeros", "large"])
def test_padded_slots_do_not_matter(contents):
    """Neither padded items nor padded tokens, whatever they hold."""
    case = make_case(**RAGGED, keep=0.8, valid=(9, 4, 7, 1), bias=-1.0, scale=math.log(40))
    items, tokens = case.item_embeds.copy(), case.image_tokens.copy()
    factor = 0.0 if contents == "zeros" else -50.0
    items[~case.item_mask] *= factor
    tokens[~case.token_mask] *= factor
    objective = itemized(worst_positive_select="strict")
    before, _, _ = call(objective, case)
    after, leaves, _ = call(objective, replace(case, item_embeds=items, image_tokens=tokens))
    after["loss"].backward()
    for term in ("loss", *TERMS):
        assert_same(after[term].item(), before[term].item(), 1e-12)
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves.values())


def test_slots_of_a_study_without_items_do_not_matter():
    """There is no real item to draw from such a study, so its padding must not become a negative."""
    case = make_case(bias=-1.0)
    mask = case.item_mask.copy()
    mask[1] = False
    objective = itemized(worst_positive_select="strict", keep_rate=1.0)
    case = replace(
        case, item_mask=mask, negatives=objective.draw(torch.tensor(mask), 9, 2, generator(0)).negatives.numpy()
    )
    items = case.item_embeds.copy()
    items[1] *= -50.0
    before, after = values(objective, case), values(objective, replace(case, item_embeds=items))
    for term in ("loss", *TERMS):
        assert_same(after[term], before[term], 1e-12)


def test_tokens_of_a_study_without_scans_do_not_matter():
    """No key token can be picked where every token is padding."""
    case = make_case(valid=(9, 0, 4), bias=-1.0)
    tokens = case.image_tokens.copy()
    tokens[1] *= -50.0
    before, after = (values(itemized(), c) for c in (case, replace(case, image_tokens=tokens)))
    for term in ("loss", *TERMS):
        assert_same(after[term], before[term], 1e-12)


def test_the_result_is_deterministic_with_given_draws():
    case = make_case(**RAGGED, keep=0.8)
    assert values(itemized(), case) == values(itemized(), case)


@pytest.mark.parametrize("term", TERMS)
def test_a_weight_of_0_leaves_the_term_out(term):
    case = make_case(**RAGGED, keep=0.8)
    everything = values(itemized(), case)
    for nothing in (0, 0.0):
        rest = values(itemized(**{f"{term}_weight": nothing}), case)
        assert set(rest) == {"loss", *TERMS} - {term}
        assert_same(rest["loss"], everything["loss"] - WEIGHTS[f"{term}_weight"] * everything[term], 1e-12)


def single(case, i):
    """Study i of a two-study case by itself: its own columns of the table."""
    slots = case.item_mask.shape[1]
    rows = slice(i, i + 1)
    return replace(
        case,
        image_embeds=case.image_embeds[rows],
        image_tokens=case.image_tokens[rows],
        item_embeds=case.item_embeds[rows],
        item_mask=case.item_mask[rows],
        is_normal=None,
        negatives=np.arange(slots)[None],
        keep_mask=case.keep_mask[rows, :, i : i + slots],
    )


def test_a_pair_of_normal_studies_contributes_nothing():
    """Two normal studies cost what they cost each by itself; with the check off they cost more."""
    case = make_case(batch=2, slots=3, items=(3, 2), normal=(1, 1), keep=0.8, bias=-1.0)
    alone = [values(itemized(), single(case, i)) for i in range(2)]
    together, unchecked = values(itemized(), case), values(itemized(normal_check=False), case)
    mixed = values(itemized(), replace(case, is_normal=np.array([True, False])))
    for term in ("loss", *TERMS):
        assert_same(together[term], (alone[0][term] + alone[1][term]) / 2, 1e-11)
        assert_same(mixed[term], unchecked[term], 1e-12)
    for term in ("ila", "kta", "mps"):
        assert unchecked[term] > together[term] + 1e-3
    assert_same(unchecked["iis"], together["iis"], 1e-12)


def test_both_selections_agree_while_logits_span_less_than_10():
    """The offsets of the released rule then single out the real positives."""
    case = make_case(**RAGGED, scale=math.log(4.9), bias=-2.0, keep=0.8)
    results = [values(itemized(worst_positive_select=select), case) for select in ("reference", "strict")]
    assert results[0] == results[1]
    assert results[0] != values(itemized(worst_positive_factor=1.0), case)


def test_both_selections_agree_at_factor_1():
    inputs, _ = SWEEP["large_scale"]
    objectives = [
        itemized(worst_positive_factor=1.0, worst_positive_select=select) for select in ("reference", "strict")
    ]
    assert values(objectives[0], make_case(**inputs)) == values(objectives[1], make_case(**inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize("bias", [-100.0, -1e4])
@pytest.mark.parametrize("name", ["itemized_clip", "flair", "mps"])
def test_finite_at_the_largest_scale(name, bias, dtype):
    """ln 100 and a large negative bias, with zeros in the padded slots."""
    case = make_case(**RAGGED, keep=0.8, scale=math.log(100), bias=bias)
    case = replace(case, item_embeds=case.item_embeds * case.item_mask[..., None])
    out, leaves, pooler = call(load_objective(name), case, dtype)
    out["loss"].backward()
    assert all(torch.isfinite(value) for value in out.values())
    assert out["loss"] > 10
    assert all(np.isfinite(gradient).all() for gradient in gradients(leaves, pooler).values())


def test_unknown_objectives_name_the_choices():
    with pytest.raises(ValueError) as error:
        load_objective("item_clip")
    for part in ("item_clip", "itemized_clip", "flair", "mps"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "name, choices",
    [
        ("itemized_clip", [*WEIGHTS, "keep_rate", "key_token_rate", "worst_positive_factor", "worst_positive_select"]),
        ("flair", ["mps_weight"]),
        ("mps", ["normal_check"]),
    ],
)
def test_unknown_weights_name_the_choices(name, choices):
    with pytest.raises(ValueError) as error:
        load_objective(name, tiling_weight=1.0)
    for part in ("tiling_weight", *choices):
        assert part in str(error.value)


@pytest.mark.parametrize("factor, kta, iis, mps", [(1.5, 1.0, 1.0, 0.1), (1.0, 1.0, 0.0, 0.1), (2.0, 0.2, 0.5, 0.3)])
def test_value_at_initialisation(factor, kta, iis, mps):
    """Section 5.7: with cosines of zero a positive costs softplus(10) and a negative 4.5e-5."""
    case, width = make_case(batch=4, slots=4, items=(4, 1, 3, 2), width=8), 8
    texts, images = case.item_embeds.copy(), case.image_embeds.copy()
    texts[..., width // 2 :], images[..., : width // 2] = 0.0, 0.0
    constant = {**case.pooler.parameters, "attn.out_proj.weight": np.zeros((width, width))}
    constant["attn.out_proj.bias"] = np.eye(width)[-1]
    case = replace(case, item_embeds=texts, image_embeds=images, pooler=reference.Pooler(2, constant))
    weights = {"ila_weight": 1.0, "kta_weight": kta, "iis_weight": iis, "mps_weight": mps}
    actual = values(itemized(**weights, worst_positive_factor=factor), case)
    counts = np.array([4, 1, 3, 2])
    mean, positive, negative = counts.mean(), np.logaddexp(0, 10), np.logaddexp(0, -10)
    table_cost = (mean + factor - 1) * positive + 3 * negative
    pairs = (mean * positive + (counts**2 - counts).mean() * negative) / 4
    everyone = (mean * positive + 3 * mean * negative) / 4
    assert_same(actual["loss"], (1 + kta) * table_cost + iis * pairs + mps * everyone)
    rough = 10 * ((mean + factor - 1) * (1 + kta) + iis * mean / 4 + mps * mean / 4)
    assert abs(actual["loss"] - rough) < 1e-3 * rough


def test_value_at_initialisation_with_random_features():
    """Cosines near zero give nearly the same value."""
    case = make_case(**RAGGED, width=512, heads=8, tokens=6, keep=0.9)
    actual = values(load_objective("itemized_clip"), case)
    assert abs(actual["loss"] / (10 * ((2.5 + 0.5) * 2 + 2.5 / 4 + 0.1 * 2.5 / 4)) - 1) < 0.08
