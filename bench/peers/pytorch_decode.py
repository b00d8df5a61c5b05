"""Attention of one new token a sequence over a dense cache [B, Hkv, n, D] in PyTorch: [B, Hq, D]."""
import math

import torch

from peer import load, serve, shape

B, N, HQ, HKV, D = (shape[name] for name in ("sequences", "tokens", "query_heads", "kv_heads", "head_dim"))
G = HQ // HKV
query, key, value = load("query", B, HQ, D), load("key", B, HKV, N, D), load("value", B, HKV, N, D)


def batched(q):
    logits = torch.matmul(q.view(B, HKV, G, D), key.transpose(2, 3)).mul_(1 / math.sqrt(D))
    return torch.matmul(logits.softmax(-1), value).reshape(B, HQ, D)


def head_by_head(q):
    out = torch.empty(B, HKV, G, D)
    for b in range(B):
        for h in range(HKV):
            logits = torch.mm(q[b, h * G:(h + 1) * G], key[b, h].t()).mul_(1 / math.sqrt(D))
            torch.mm(logits.softmax(-1), value[b, h], out=out[b, h])
    return out.view(B, HQ, D)


def compute(way):
    return way(query)


serve(compute, way=(compute, {way.__name__: way for way in (batched, head_by_head)}))
