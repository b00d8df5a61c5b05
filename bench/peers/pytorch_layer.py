"""One stage of one layer in PyTorch; shape.json names it and the options of its preset. Scores are [N, Hkv]."""
import torch

from peer import load, serve, shape

STAGE, N, HQ, HKV, D = (shape[name] for name in ("stage", "tokens", "query_heads", "kv_heads", "head_dim"))
G = HQ // HKV


def spans(chunk, first, end):
    """[first, end) as (begin, chunks, tokens a chunk): the full chunks, then what is left."""
    chunk = chunk or end - first
    full = (end - first) // chunk
    rest = (end - first) % chunk
    return [span for span in ((first, full, chunk), (first + full * chunk, 1, rest)) if span[1] * span[2]]


# Leverage


def sketch_centred(keys, phi):
    keys = keys.permute(2, 0, 1, 3)
    return torch.matmul(keys - keys.mean(-2, keepdim=True), phi)


def centre_sketched(keys, phi):
    """The mean is taken of k columns instead of D; a Phi that heads share takes one product for all of them."""
    x = torch.matmul(keys, phi[0, 0]).permute(2, 0, 1, 3).contiguous() if len(phi) == 1 else torch.matmul(keys.permute(2, 0, 1, 3), phi)
    return x.sub_(x.mean(-2, keepdim=True))


def solved(x, factor):
    return torch.linalg.solve_triangular(factor, x.transpose(-1, -2), upper=False).square_().sum(-2)


def inverted(x, factor):
    return torch.matmul(x, torch.cholesky_inverse(factor)).mul_(x).sum(-1)


def leverage(way):
    """||L^-1 x||^2 of the centred, sketched keys of a chunk: [Hkv, scored]."""
    sketch, solve = way
    parts = []
    for begin, chunks, tokens in spans(shape["leverage_chunk"], FIRST, END):
        keys = key_pre_rope[begin:begin + chunks * tokens].view(chunks, tokens, HKV, D)
        x = sketch(keys, phi)
        gram = torch.matmul(x.transpose(-1, -2), x)
        gram.diagonal(dim1=-2, dim2=-1).add_(shape["epsilon"])
        parts.append(solve(x, torch.linalg.cholesky(gram)).reshape(HKV, -1))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


LEVERAGE_WAYS = {f"{sketch.__name__}, {solve.__name__}": (sketch, solve) for sketch in (centre_sketched, sketch_centred) for solve in (inverted, solved)}


# Attention scores


def softmax_then_sum(q, k):
    return torch.bmm(q, k).softmax(-1).sum(1)


def exponentials_then_product(q, k):
    """The division and the column sum as one product with the inverse row sums: fewer passes over the logits."""
    e = torch.bmm(q, k)
    e.sub_(e.amax(-1, keepdim=True)).exp_()
    return torch.bmm(e.sum(-1).reciprocal_().unsqueeze(1), e).squeeze(1)


def attention(way):
    """Column sums of the softmax within chunks, summed over the group, so many chunks at once: [Hkv, scored]."""
    columns, at_once = way
    a = torch.empty(END - FIRST, HKV)
    for begin, chunks, tokens in spans(shape["attention_chunk"], FIRST, END):
        for done in range(0, chunks, at_once or chunks):
            count = min(at_once or chunks, chunks - done)
            first, end = begin + done * tokens, begin + (done + count) * tokens
            q = query[first:end].view(count, tokens, HKV, G, D).permute(0, 2, 3, 1, 4).reshape(count * HKV, G * tokens, D)
            k = key[first:end].view(count, tokens, HKV, D).permute(0, 2, 3, 1).reshape(count * HKV, D, tokens)
            a[first - FIRST:end - FIRST] = columns(q, k).view(count, HKV, tokens).transpose(1, 2).reshape(-1, HKV)
    return a.t()


ATTENTION_WAYS = {f"{columns.__name__}, {at_once or 'all'} chunks at once": (columns, at_once) for at_once in (1, 4, 0) for columns in (softmax_then_sum, exponentials_then_product)}


# Scores


def z(x, scope, chunk):
    """(x - mean) / std of [Hkv, scored]: of each head, of all heads together, or of all heads of a chunk."""
    if scope == "chunk":
        return torch.cat([z(part, "sequence", 0) for part in x.split(chunk or x.shape[1], 1)], 1)
    dims = -1 if scope == "head" else (0, 1)
    std = x.std(dims, unbiased=shape["unbiased"], keepdim=True).clamp_(min=shape["std_floor"])
    return (x - x.mean(dims, keepdim=True)).div_(std)


def scores(leverage_way, attention_way):
    a = attention(attention_way)
    if shape["group_mean"]:
        a = a / G
    if shape["value_norm"]:
        a = a * value[FIRST:END].norm(dim=-1).t()
    if shape["pool"] > 1:
        a = torch.nn.functional.avg_pool1d(a.unsqueeze(1), shape["pool"], 1, shape["pool"] // 2).squeeze(1)
    s = torch.full((N, HKV), float("inf"))
    s[FIRST:END] = (z(a, shape["attention_scope"], shape["attention_chunk"]) + shape["lambda"] * z(leverage(leverage_way), shape["leverage_scope"], shape["leverage_chunk"])).t()
    s[:shape["protect_first"]] = float("inf")
    s[N - shape["protect_last"]:] = float("inf")
    return s


# Selection and compaction


def topk_then_sort(flat):
    return flat.topk(shape["kept"], sorted=False).indices.sort().values


def topk_then_mask(flat):
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(shape["kept"], sorted=False).indices] = True
    return mask.nonzero().squeeze(1)


def select(way):
    """Kept pairs as head * N + token, ascending."""
    return way(fused.t().reshape(-1))


def rows_at_once(source):
    return source.view(N * HKV, D).index_select(0, rows)


def rows_indexed(source):
    return source.view(N * HKV, D)[rows]


def head_by_head(source):
    kept = torch.empty(len(rows), D)
    for h, (begin, tokens) in enumerate(tokens_of_heads):
        torch.index_select(source[:, h], 0, tokens, out=kept[begin:begin + len(tokens)])
    return kept


def compact(way):
    return way(key), way(value)


def named(*functions):
    return {function.__name__: function for function in functions}


if STAGE in ("leverage", "attention", "scores"):
    FIRST, END = shape["first_scored"], shape["end_scored"]
if STAGE in ("leverage", "scores"):
    key_pre_rope, phi = load("key_pre_rope", N, HKV, D), load("phi", -1, D, shape["sketch"]).unsqueeze(1)
if STAGE in ("attention", "scores"):
    query, key = load("query", N, HQ, D), load("key", N, HKV, D)
if STAGE == "leverage":
    serve(lambda part: leverage(part).t(), part=(leverage, LEVERAGE_WAYS))
elif STAGE == "attention":
    serve(lambda part: attention(part).t(), part=(attention, ATTENTION_WAYS))
elif STAGE == "scores":
    value = load("value", N, HKV, D) if shape["value_norm"] else None
    serve(scores, leverage_way=(leverage, LEVERAGE_WAYS), attention_way=(attention, ATTENTION_WAYS))
elif STAGE == "select":
    fused = load("scores", N, HKV)
    serve(select, way=(select, named(topk_then_sort, topk_then_mask)))
elif STAGE == "compact":
    key, value = load("key", N, HKV, D), load("value", N, HKV, D)
    rows = load("rows", -1).long()
    heads = rows % HKV
    tokens_of_heads = [(int((heads < h).sum()), rows[heads == h] // HKV) for h in range(HKV)]
    serve(compact, way=(compact, named(rows_at_once, rows_indexed, head_by_head)))
else:
    raise SystemExit(f"shape.json names the stage {STAGE}, which is not known")
