"""The losses of several processes, computed in one (spec 5.10): plain loops over ranks, images and texts, with autograd.

Shares no code with the package. A rank is a dictionary: image_embeds (B, P), image_tokens (B, L, P), item_embeds (B, K, P),
item_mask, is_normal, token_mask, `negatives` and `keep_mask`, one (B, heads, T', L) or None per rank whose texts are scored.
"""

import torch
from torch.nn import functional as F


def cosine(a, b):
    return (a * b).sum() / (a.norm().clamp(min=1e-12) * b.norm().clamp(min=1e-12))


def pool(pooler, text, tokens, keep):
    """One text (P,) on the tokens (L, P) of one image; keep (heads, L) boolean. Returns (P,) and the attention (L,)."""
    p = dict(pooler.named_parameters())

    def project(part, x):
        x = F.layer_norm(x, x.shape[-1:], p[f"layer_norm_{part}.weight"], p[f"layer_norm_{part}.bias"], 1e-5)
        return x @ p[f"{part}_proj.weight"].T + p[f"{part}_proj.bias"]

    query, keys, values = project("q", text), project("k", tokens), project("v", tokens)
    heads, size = len(keep), len(text) // len(keep)
    mixed, attention = [], 0.0
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = (keys[:, part] @ query[part]) / size**0.5
        logits = logits.masked_fill(~keep[head], float("-inf"))
        shares = torch.cat([logits, logits.new_zeros(1)]).softmax(0)[:-1]
        mixed.append(shares @ values[:, part])
        attention = attention + shares / heads
    return torch.cat(mixed) @ p["out_proj.weight"].T + p["out_proj.bias"], attention.detach()


def log_sigmoid(x):
    return F.logsigmoid(x)


def mps_block(images, texts, local, scale, bias, normal_check=True):
    """Global features against all items of one rank, divided by that rank's slots."""
    total, (studies, slots) = 0.0, texts["item_mask"].shape
    for i, image in enumerate(images["image_embeds"]):
        for j in range(studies):
            own = local and i == j
            if normal_check and not own and images["is_normal"][i] and texts["is_normal"][j]:
                continue
            for k in range(slots):
                if texts["item_mask"][j, k]:
                    logit = scale * cosine(image, texts["item_embeds"][j, k]) + bias
                    total = total - log_sigmoid(logit if own else -logit)
    return total / (studies * slots)


def itemized_clip(ranks, scale, bias, pooler, weights, key_token_rate, factor, normal_check=True):
    """Terms and loss of every rank; the worst positive by the reference's rule."""
    results = []
    for r, images in enumerate(ranks):
        batch, length, _ = images["image_tokens"].shape
        terms = {"ila": 0.0, "kta": 0.0, "iis": 0.0, "mps": 0.0}
        for s, texts in enumerate(ranks):
            local, (studies, slots) = r == s, texts["item_mask"].shape
            terms["mps"] = terms["mps"] + mps_block(images, texts, local, scale, bias, normal_check)
            flat = texts["item_embeds"].flatten(0, 1)
            for i in range(batch):
                tokens, seen = images["image_tokens"][i], images["token_mask"][i]
                row = texts["negatives"][i % studies].tolist()
                logits, key_logits, scores, signs, counted, own = [], [], [], [], [], {}
                for c, number in enumerate(row):
                    j, k = divmod(number, slots)
                    positive = local and j == i
                    real = bool(texts["item_mask"][j, k])
                    pair = normal_check and not positive and images["is_normal"][i] and texts["is_normal"][j]
                    keep = seen.expand(pooler.num_heads, -1)
                    if images["keep_mask"][s] is not None:
                        keep = keep & images["keep_mask"][s][i, :, c]
                    pooled, attention = pool(pooler, flat[number], tokens, keep)
                    logits.append(scale * cosine(pooled, flat[number]) + bias)
                    count = max(1, int(key_token_rate * int(seen.sum())))
                    chosen = torch.zeros(length, dtype=torch.bool)
                    chosen[attention.masked_fill(~seen, -1).topk(count).indices] = True
                    pooled_keys, _ = pool(pooler, flat[number], tokens, (chosen & seen).expand(pooler.num_heads, -1))
                    key_logits.append(scale * cosine(pooled_keys, flat[number]) + bias)
                    signs.append(1.0 if positive else -1.0)
                    counted.append(float(real and not pair))
                    scores.append(float(logits[-1].detach()) - 10 * real - 10 * signs[-1])
                    if positive:
                        own[k] = pooled
                if local and factor > 1:
                    counted[scores.index(min(scores))] *= factor
                for c, sign in enumerate(signs):
                    terms["ila"] = terms["ila"] - counted[c] * log_sigmoid(sign * logits[c]) / batch
                    terms["kta"] = terms["kta"] - counted[c] * log_sigmoid(sign * key_logits[c]) / batch
                for k in range(slots if local else 0):
                    for m in range(slots):
                        if texts["item_mask"][i, k] and texts["item_mask"][i, m]:
                            logit = scale * cosine(own[k], texts["item_embeds"][i, m]) + bias
                            part = log_sigmoid(logit if k == m else -logit) / (batch * slots)
                            terms["iis"] = terms["iis"] - part
        results.append({**terms, "loss": sum(weights[name] * term for name, term in terms.items())})
    return results


def flair(ranks, scale, bias, pooler):
    results = []
    for r, images in enumerate(ranks):
        tcs = mps = 0.0
        for s, texts in enumerate(ranks):
            studies, slots = texts["item_mask"].shape
            mps = mps + mps_block(images, texts, r == s, scale, bias, normal_check=False)
            flat = texts["item_embeds"].flatten(0, 1)
            for i in range(len(images["image_tokens"])):
                keep = images["token_mask"][i].expand(pooler.num_heads, -1)
                for number in texts["negatives"][i % studies].tolist():
                    j, k = divmod(number, slots)
                    if texts["item_mask"][j, k]:
                        pooled, _ = pool(pooler, flat[number], images["image_tokens"][i], keep)
                        logit = scale * cosine(pooled, flat[number]) + bias
                        tcs = tcs - log_sigmoid(logit if r == s and i == j else -logit) / (studies + slots - 1)
        results.append({"tcs": tcs, "mps": mps, "loss": (tcs + mps) / 2})
    return results


def mps(ranks, scale, bias, normal_check=True):
    return [
        {"loss": sum(mps_block(images, texts, r == s, scale, bias, normal_check) for s, texts in enumerate(ranks))}
        for r, images in enumerate(ranks)
    ]
