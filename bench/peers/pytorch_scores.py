"""One layer's scores (Paper preset) in PyTorch: [N, Hkv], protected tokens +inf."""
import torch

from peer import load, serve, shape

N, HQ, HKV, D, K, C = (shape[name] for name in ("tokens", "query_heads", "kv_heads", "head_dim", "sketch", "chunk"))
G = HQ // HKV
key_pre_rope, query, key, phi = load("key_pre_rope", N, HKV, D), load("query", N, HQ, D), load("key", N, HKV, D), load("phi", D, K)


def leverage():
    x = torch.matmul((key_pre_rope - key_pre_rope.mean(0, keepdim=True)).transpose(0, 1), phi)
    factor = torch.linalg.cholesky(torch.matmul(x.transpose(1, 2), x) + shape["epsilon"] * torch.eye(K))
    y = torch.linalg.solve_triangular(factor, x.transpose(1, 2), upper=False)
    return (y * y).sum(1)


def grouped(first, count):
    """Queries and keys of `count` chunks from token `first`, one batch entry a (chunk, KV head): [., G*C, D] and [., D, C]."""
    end = first + count * C
    q = query[first:end].view(count, C, HKV, G, D).permute(0, 2, 3, 1, 4).reshape(count * HKV, G * C, D)
    k = key[first:end].view(count, C, HKV, D).permute(0, 2, 3, 1).reshape(count * HKV, D, C)
    return q, k


def softmax_then_sum(q, k):
    return torch.bmm(q, k).softmax(-1).sum(1)


def exponentials_then_product(q, k):
    """The division and the column sum as one product with the inverse row sums: fewer passes over the logits."""
    e = torch.bmm(q, k)
    e.sub_(e.amax(-1, keepdim=True)).exp_()
    return torch.bmm(e.sum(-1).reciprocal_().unsqueeze(1), e).squeeze(1)


def attention(columns, chunks_at_once):
    a = torch.empty(N // C, HKV, C)
    for first in range(0, N // C, chunks_at_once):
        count = min(chunks_at_once, N // C - first)
        a[first:first + count] = columns(*grouped(first * C, count)).view(count, HKV, C)
    return a.transpose(0, 1).reshape(HKV, N)


def z(x):
    return (x - x.mean(-1, keepdim=True)) / x.std(-1, unbiased=False, keepdim=True)


def scores(variant):
    pooled = torch.nn.functional.avg_pool1d(attention(*variant).unsqueeze(1), 3, 1, 1).squeeze(1)
    s = z(pooled) + shape["lambda"] * z(leverage())
    s[:, :shape["protect_first"]] = float("inf")
    s[:, N - shape["protect_last"]:] = float("inf")
    return s.transpose(0, 1)


serve(scores, {f"{columns.__name__}, {at_once} chunks at once": (columns, at_once)
               for columns in (softmax_then_sum, exponentials_then_product) for at_once in (1, 4, N // C)})
