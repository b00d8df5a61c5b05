"""One layer's scores (Paper preset) in PyTorch, as a peer process that takes turns with the library.

Started as: pytorch_scores.py DIR, where DIR holds key_pre_rope.bin, query.bin, key.bin, phi.bin (float32) and shape.json.
Each line on stdin is a command; each answer is one JSON line on stdout:
  tune          times every variant at 1 and 2 threads, keeps the fastest pair, and reports all
  scores        writes DIR/peer_scores.bin, [N, Hkv] float32, protected tokens +inf
  run           runs once and reports seconds
"""
import json
import os
import sys
import time

import numpy
import torch

folder = sys.argv[1]
shape = json.load(open(os.path.join(folder, "shape.json")))
N, HQ, HKV, D, K, C = (shape[name] for name in ("tokens", "query_heads", "kv_heads", "head_dim", "sketch", "chunk"))
G = HQ // HKV


def load(name, *dims):
    return torch.from_numpy(numpy.fromfile(os.path.join(folder, name + ".bin"), dtype=numpy.float32).reshape(dims))


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
    return z(pooled) + shape["lambda"] * z(leverage())


VARIANTS = [(columns, at_once) for columns in (softmax_then_sum, exponentials_then_product) for at_once in (1, 4, N // C)]


def seconds(variant):
    start = time.perf_counter()
    scores(variant)
    return time.perf_counter() - start


def answer(**fields):
    print(json.dumps(fields), flush=True)


best = (1, VARIANTS[0])
with torch.inference_mode():
    for line in sys.stdin:
        command = line.strip()
        if command == "tune":
            timings = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for variant in VARIANTS:
                    seconds(variant)
                    timings.append((min(seconds(variant) for _ in range(3)), threads, variant))
            _, *best = min(timings, key=lambda timing: timing[0])
            torch.set_num_threads(best[0])
            answer(torch=torch.__version__, threads=best[0], variant=best[1][0].__name__, chunks_at_once=best[1][1],
                   timings=[dict(seconds=s, threads=t, variant=v[0].__name__, chunks_at_once=v[1]) for s, t, v in timings],
                   blas=next((p for p in open("/proc/self/maps").read().split() if "blas" in p and ".so" in p), "unknown"))
        elif command == "scores":
            s = scores(best[1])
            s[:, :shape["protect_first"]] = float("inf")
            s[:, N - shape["protect_last"]:] = float("inf")
            s.transpose(0, 1).contiguous().numpy().tofile(os.path.join(folder, "peer_scores.bin"))
            answer(done=True)
        elif command == "run":
            answer(seconds=seconds(best[1]))
        else:
            answer(error="unknown command " + command)
