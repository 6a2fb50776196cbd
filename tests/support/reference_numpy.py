"""The item pooler and the objectives in float64 numpy, as plain loops over studies, texts and heads.

A second formulation to hold the package against: it is slow, shares no code with the package, and reads every pair
off the table of row numbers instead of its layout. One process only.
"""

import math
from dataclasses import dataclass, field

import numpy as np


def log_sigmoid(x):
    """log(1 / (1 + exp(-x))) without overflow."""
    return -np.logaddexp(0.0, -np.asarray(x, dtype=np.float64))


def unit(vector):
    """The vector divided by its length; a zero vector stays zero."""
    return vector / max(np.sqrt(np.sum(vector * vector)), 1e-12)


def cosine(a, b):
    return float(np.sum(unit(a) * unit(b)))


def layer_norm(vector, gain, shift):
    """Layer norm of one vector, eps 1e-5."""
    centred = vector - vector.mean()
    return centred / np.sqrt(np.mean(centred * centred) + 1e-5) * gain + shift


@dataclass
class Pooler:
    """Cross-attention with a zero slot; parameters under the names that `convert_pooler` takes."""

    heads: int
    parameters: dict[str, np.ndarray]

    @classmethod
    def random(cls, width, heads, rng):
        """Every gain and bias matters; all values are exact in float32."""
        shapes = {
            "attn.in_proj_weight": (3 * width, width),
            "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width),
            "attn.out_proj.bias": (width,),
        }
        drawn = {name: rng.normal(size=shape) / np.sqrt(width) for name, shape in shapes.items()}
        for part in "qkv":
            drawn[f"ln_{part}.weight"] = 1 + 0.3 * rng.normal(size=width)
            drawn[f"ln_{part}.bias"] = 0.3 * rng.normal(size=width)
        return cls(heads, {name: value.astype(np.float32).astype(np.float64) for name, value in drawn.items()})

    def __call__(self, queries, tokens, keep=None):
        """One study: queries (T, P), tokens (L, P), keep (heads, T, L); returns (T, P) and the attention (T, L)."""
        p = self.parameters
        width = queries.shape[1]
        size = width // self.heads
        weights = [p["attn.in_proj_weight"][n * width : (n + 1) * width] for n in range(3)]
        biases = [p["attn.in_proj_bias"][n * width : (n + 1) * width] for n in range(3)]
        keys = [weights[1] @ layer_norm(token, p["ln_k.weight"], p["ln_k.bias"]) + biases[1] for token in tokens]
        values = [weights[2] @ layer_norm(token, p["ln_v.weight"], p["ln_v.bias"]) + biases[2] for token in tokens]
        pooled, attention = [], np.zeros((len(queries), len(tokens)))
        for t, text in enumerate(queries):
            query = weights[0] @ layer_norm(text, p["ln_q.weight"], p["ln_q.bias"]) + biases[0]
            mixed = np.zeros(width)
            for head in range(self.heads):
                part = slice(head * size, (head + 1) * size)
                kept = [n for n in range(len(tokens)) if keep is None or keep[head, t, n]]
                logits = [np.sum(query[part] * keys[n][part]) / np.sqrt(size) for n in kept] + [0.0]
                shares = np.exp(np.array(logits) - max(logits))
                shares /= shares.sum()
                for share, n in zip(shares, kept):
                    mixed[part] += share * values[n][part]
                    attention[t, n] += share / self.heads
            pooled.append(p["attn.out_proj.weight"] @ mixed + p["attn.out_proj.bias"])
        return np.array(pooled), attention


@dataclass
class Result:
    """Unweighted terms, their weighted sum, and the selections that carry no gradient."""

    terms: dict[str, float]
    loss: float
    columns: list[int | None] = field(default_factory=list)
    key_tokens: list[np.ndarray] = field(default_factory=list)
    margin: float = np.inf

    def same_selection(self, other):
        """Whether both picked the same worst positives and key tokens."""
        return self.columns == other.columns and all(
            np.array_equal(a, b) for a, b in zip(self.key_tokens, other.key_tokens)
        )


def gap(values, chosen, rest):
    """How far apart the last chosen and the first rejected are."""
    if not len(chosen) or not len(rest):
        return np.inf
    return min(abs(values[a] - values[b]) for a in chosen for b in rest)


def mps_term(image_embeds, item_embeds, item_mask, is_normal, scale, bias):
    """Global feature against every item of every study, divided by B * K."""
    batch, slots = item_mask.shape
    total = 0.0
    for i in range(batch):
        for j in range(batch):
            for k in range(slots):
                if not item_mask[j, k] or (i != j and is_normal[i] and is_normal[j]):
                    continue
                logit = scale * cosine(image_embeds[i], item_embeds[j, k]) + bias
                total -= log_sigmoid(logit if i == j else -logit)
    return float(total / (batch * slots))


def mps(image_embeds, item_embeds, item_mask, is_normal, logit_scale, logit_bias, normal_check=True):
    """The objective of the global term alone."""
    normal = np.zeros(len(item_mask), bool) if is_normal is None or not normal_check else np.asarray(is_normal, bool)
    term = mps_term(image_embeds, item_embeds, item_mask, normal, np.exp(logit_scale), logit_bias)
    return Result({"mps": term}, term)


def flair(
    image_embeds,
    image_tokens,
    item_embeds,
    item_mask,
    logit_scale,
    logit_bias,
    pooler,
    negatives,
    token_mask=None,
    weights=(0.5, 0.5),
):
    """Text-conditioned loss over the table, divided by its width, and the global term; padded slots are dropped."""
    batch, slots, _ = item_embeds.shape
    scale, columns, texts = np.exp(logit_scale), negatives.shape[1], item_embeds.reshape(batch * slots, -1)
    total = 0.0
    for i in range(batch):
        seen = np.ones(image_tokens.shape[1], bool) if token_mask is None else np.asarray(token_mask[i], bool)
        pooled, _ = pooler(texts[negatives[i]], image_tokens[i][seen])
        for c in range(columns):
            logit = scale * cosine(pooled[c], texts[negatives[i, c]]) + logit_bias
            if item_mask.reshape(-1)[negatives[i, c]]:
                total -= log_sigmoid(logit if negatives[i, c] // slots == i else -logit)
    abnormal = np.zeros(batch, bool)
    terms = {
        "tcs": float(total / columns),
        "mps": mps_term(image_embeds, item_embeds, item_mask, abnormal, scale, logit_bias),
    }
    return Result(terms, weights[0] * terms["tcs"] + weights[1] * terms["mps"])


def itemized_clip(
    image_embeds,
    image_tokens,
    item_embeds,
    item_mask,
    is_normal,
    logit_scale,
    logit_bias,
    pooler,
    negatives,
    keep_mask=None,
    token_mask=None,
    ila_weight=1.0,
    mps_weight=0.1,
    kta_weight=1.0,
    iis_weight=1.0,
    key_token_rate=0.05,
    worst_positive_factor=1.5,
    worst_positive_select="reference",
    normal_check=True,
):
    """All four terms of the composite objective; a weight of 0 or None keeps a term out of the sum only."""
    batch, slots, _ = item_embeds.shape
    columns, tokens = negatives.shape[1], image_tokens.shape[1]
    scale, texts = np.exp(logit_scale), item_embeds.reshape(batch * slots, -1)
    normal = np.zeros(batch, bool) if is_normal is None or not normal_check else np.asarray(is_normal, bool)
    result = Result({}, 0.0)
    ila = kta = iis = 0.0
    for i in range(batch):
        seen = np.ones(tokens, bool) if token_mask is None else np.asarray(token_mask[i], bool)
        keep = np.ones((pooler.heads, columns, tokens), bool) if keep_mask is None else np.asarray(keep_mask[i], bool)
        keep = keep & seen
        rows = negatives[i]
        study = [int(row) // slots for row in rows]
        real = [bool(item_mask[j, row % slots]) if j == i else True for j, row in zip(study, rows)]
        sign = [1.0 if j == i else -1.0 for j in study]
        dropped = [j != i and bool(normal[i]) and bool(normal[j]) for j in study]
        pooled, attention = pooler(texts[rows], image_tokens[i], keep)
        logits = [scale * cosine(pooled[c], texts[rows[c]]) + logit_bias for c in range(columns)]

        # the worst positive of the study weighs more
        emphasis, worst = [1.0] * columns, None
        if worst_positive_factor > 1:
            if worst_positive_select == "reference":
                score = [logits[c] - 10.0 * real[c] - 10.0 * sign[c] for c in range(columns)]
                candidates = list(range(columns))
            else:
                score = logits
                candidates = [c for c in range(columns) if study[c] == i and real[c]]
            if candidates:
                worst = min(candidates, key=lambda c: score[c])
                emphasis[worst] = worst_positive_factor
                result.margin = min(result.margin, gap(score, [worst], [c for c in candidates if c != worst]))
        result.columns.append(worst)

        # the tokens that each text attends to most, among those that exist
        count = max(1, int(int(seen.sum()) * key_token_rate))
        key = np.zeros((columns, tokens), bool)
        for c in range(columns):
            order = sorted(np.flatnonzero(seen), key=lambda n: -attention[c, n])
            key[c, order[:count]] = True
            result.margin = min(result.margin, gap(attention[c], order[:count][-1:], order[count:][:1]))
        result.key_tokens.append(key)
        focused, _ = pooler(texts[rows], image_tokens[i], np.broadcast_to(key, (pooler.heads, *key.shape)))

        for c in range(columns):
            if not real[c] or dropped[c]:
                continue
            key_logit = scale * cosine(focused[c], texts[rows[c]]) + logit_bias
            ila -= log_sigmoid(sign[c] * logits[c]) * emphasis[c]
            kta -= log_sigmoid(sign[c] * key_logit) * emphasis[c]

        own = [c for c in range(columns) if study[c] == i and real[c]]
        for a in own:
            for b in own:
                logit = scale * cosine(pooled[a], texts[rows[b]]) + logit_bias
                iis -= log_sigmoid(logit if a == b else -logit)
    result.terms = {
        "ila": float(ila / batch),
        "mps": mps_term(image_embeds, item_embeds, item_mask, normal, scale, logit_bias),
        "kta": float(kta / batch),
        "iis": float(iis / (batch * slots)),
    }
    weights = {"ila": ila_weight, "mps": mps_weight, "kta": kta_weight, "iis": iis_weight}
    result.loss = sum(weights[name] * term for name, term in result.terms.items() if weights[name])
    return result


def cross_entropy(logits, positives):
    """-sum of log softmax over the positives."""
    logits = np.asarray(logits, dtype=np.float64)
    log_total = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    return float(sum(log_total - logits[p] for p in positives))


def hlip(image_embeds, study_embeds, is_normal, logit_scale, logit_bias, form, normal_check):
    """One text per study: softmax form with normal studies as further positives, or sigmoid form without their pairs."""
    batch, scale = len(image_embeds), np.exp(logit_scale)
    cosines = [[cosine(image, text) for text in study_embeds] for image in image_embeds]
    normal = [bool(normal_check and z) for z in is_normal]
    total = 0.0
    for i in range(batch):
        if form == "siglip":
            for j in range(batch):
                if i == j:
                    total -= log_sigmoid(scale * cosines[i][j] + logit_bias)
                elif not (normal[i] and normal[j]):
                    total -= log_sigmoid(-scale * cosines[i][j] - logit_bias)
        else:
            positives = [j for j in range(batch) if j == i or (normal[i] and normal[j])]
            total += cross_entropy([scale * cosines[i][j] for j in range(batch)], positives) / 2
            total += cross_entropy([scale * cosines[j][i] for j in range(batch)], positives) / 2
    return float(total / batch)


def token_group(text, tokens, threshold):
    """Mean of the tokens, weighted by their min-max normalised similarity with the text."""
    similarity = np.array([cosine(text, token) for token in tokens])
    weights = (similarity - similarity.min()) / (similarity.max() - similarity.min() + 1e-10)
    weights[weights < (1 / len(tokens) if threshold < 0 else threshold)] = 0
    return unit(sum(w * unit(token) for w, token in zip(weights / weights.sum(), tokens)))


def dreamlip(
    image_embeds,
    image_tokens,
    item_embeds,
    item_mask,
    logit_scale,
    token_mask=None,
    clip_weight=1.0,
    grouping_weight=1.0,
    grouping_threshold=0.0,
):
    """Slot by slot against the global embeddings, and every real item against every group of tokens."""
    batch, slots = item_mask.shape
    scale = np.exp(logit_scale)
    real = [(i, m) for i in range(batch) for m in range(slots) if item_mask[i, m]]
    clip = grouping = 0.0
    for m in range(slots):
        studies = [i for i in range(batch) if item_mask[i, m]]
        table = [[scale * cosine(image_embeds[i], item_embeds[j, m]) for j in studies] for i in studies]
        for n in range(len(studies)):
            clip += (cross_entropy(table[n], [n]) + cross_entropy([row[n] for row in table], [n])) / 2
    groups = []
    for i, m in real:
        seen = np.ones(image_tokens.shape[1], bool) if token_mask is None else np.asarray(token_mask[i], bool)
        groups.append(token_group(item_embeds[i, m], image_tokens[i][seen], grouping_threshold))
    table = [[scale * cosine(item_embeds[i, m], group) for group in groups] for i, m in real]
    for n in range(len(real)):
        grouping += (cross_entropy(table[n], [n]) + cross_entropy([row[n] for row in table], [n])) / 2
    terms = {"clip": clip / len(real), "grouping": grouping / len(real)}
    return Result(terms, clip_weight * terms["clip"] + grouping_weight * terms["grouping"])


def smartclip(image_embeds, study_embeds, masks, scale=100.0, alignment_weight=10.0, sparsity_weight=2.0):
    """Every image seen through the mask of every text."""
    batch = len(image_embeds)
    table = np.zeros((batch, batch))
    for i in range(batch):
        for j in range(batch):
            seen = image_embeds[i] * masks[j]
            table[i, j] = scale * np.sum(seen / (np.sqrt(np.sum(seen * seen)) + 1e-6) * unit(study_embeds[j]))
    terms = {
        "sidm": sum(cross_entropy(table[i], [i]) for i in range(batch)) / batch,
        "dism": sum(cross_entropy(table[:, j], [j]) for j in range(batch)) / batch,
        "sparsity": float(np.mean(np.abs(masks))),
    }
    loss = alignment_weight * (terms["sidm"] + terms["dism"]) + sparsity_weight * terms["sparsity"]
    return Result(terms, loss)


def mask_logits(parameters, tokens, heads):
    """The mask network on the tokens (T, C) of one text without padding; parameters under the names of its state dict."""
    p = parameters
    width = tokens.shape[1]
    size = width // heads
    normed = [layer_norm(x, p["block.norm1.weight"], p["block.norm1.bias"]) for x in tokens]
    weight, bias = p["block.self_attn.in_proj_weight"], p["block.self_attn.in_proj_bias"]
    queries, keys, values = (
        [weight[n * width : (n + 1) * width] @ x + bias[n * width : (n + 1) * width] for x in normed] for n in range(3)
    )
    hidden = []
    for t, x in enumerate(tokens):
        mixed = np.zeros(width)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            shares = np.array([np.sum(queries[t][part] * key[part]) / np.sqrt(size) for key in keys])
            shares = np.exp(shares - shares.max())
            for share, value in zip(shares / shares.sum(), values):
                mixed[part] += share * value[part]
        x = x + p["block.self_attn.out_proj.weight"] @ mixed + p["block.self_attn.out_proj.bias"]
        inner = p["block.linear1.weight"] @ layer_norm(x, p["block.norm2.weight"], p["block.norm2.bias"])
        inner = inner + p["block.linear1.bias"]
        inner = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in inner])
        hidden.append(x + p["block.linear2.weight"] @ inner + p["block.linear2.bias"])
    scores = np.array([float((p["score.weight"] @ x + p["score.bias"])[0]) for x in hidden])
    shares = np.exp(scores - scores.max())
    pooled = sum(share * x for share, x in zip(shares / shares.sum(), hidden))
    return p["projection.weight"] @ pooled + p["projection.bias"]
