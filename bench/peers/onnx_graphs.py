"""
Stages as graphs of standard ONNX operators (opset 13). Cholesky factorisation is no ONNX operator, so leverage, and scores with it, have no graph.
"""
import os

import torch

from peer import folder, shape

STAGE, N, HQ, HKV, D = (shape[name] for name in ("stage", "tokens", "query_heads", "kv_heads", "head_dim"))
G = HQ // HKV

def attention(at_once):
    """MatMul, Softmax, ReduceSum."""
    chunk = shape["attention_chunk"]

    def graph(query, key):
        parts = []
        for first in range(0, N, at_once * chunk):
            count = min(at_once, (N - first) // chunk)
            rows = slice(first, first + count * chunk)
            q = query[rows].view(count, chunk, HKV, G, D).permute(0, 2, 3, 1, 4).reshape(count, HKV, G * chunk, D)
            k = key[rows].view(count, chunk, HKV, D).permute(0, 2, 3, 1)
            parts.append(torch.matmul(q, k).softmax(-1).sum(2).transpose(1, 2).reshape(-1, HKV))
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    return graph


def select_sorted(scores):
    """TopK, and TopK of the indices, which sorts them."""
    return scores.t().reshape(-1).topk(shape["kept"], sorted=False).indices.topk(shape["kept"], largest=False).values


def select_mask(scores):
    """TopK, ScatterElements, NonZero."""
    flat = scores.t().reshape(-1)
    return torch.zeros_like(flat).scatter(0, flat.topk(shape["kept"], sorted=False).indices, 1.0).nonzero().squeeze(1)


def compact(key, value, rows):
    """Gather."""
    return key.reshape(-1, D).index_select(0, rows), value.reshape(-1, D).index_select(0, rows)


def decode(query, key, value):
    """MatMul, Softmax, MatMul."""
    logits = torch.matmul(query.view(-1, HKV, G, D), key.transpose(2, 3)) * D ** -0.5
    return torch.matmul(logits.softmax(-1), value).reshape(-1, HQ, D)


def tokens(heads):
    return torch.zeros(N, heads, D)


def stage():
    """The ways of writing the stage, and inputs of its shapes."""
    if STAGE == "attention":
        chunks = N // shape["attention_chunk"]
        return {f"{at_once} chunks at once": attention(at_once) for at_once in sorted({1, min(4, chunks), chunks})}, {"query": tokens(HQ), "key": tokens(HKV)}
    if STAGE == "select":
        return {"TopK, sorted by TopK": select_sorted, "TopK, mask": select_mask}, {"scores": torch.arange(N * HKV).float().view(N, HKV)}
    if STAGE == "compact":
        return {"Gather": compact}, {"key": tokens(HKV), "value": tokens(HKV), "rows": torch.zeros(shape["kept"], dtype=torch.int64)}
    if STAGE == "decode":
        cache = (shape["sequences"], HKV, N, D)
        return {"MatMul, Softmax, MatMul": decode}, {"query": torch.zeros(shape["sequences"], HQ, D), "key": torch.zeros(cache), "value": torch.zeros(cache)}
    raise SystemExit(f"shape.json names the stage {STAGE}, which has no graph")


class Graph(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def export():
    """Writes DIR/NAME.onnx for every way of writing the stage."""
    ways, inputs = stage()
    for name, function in ways.items():
        torch.onnx.export(Graph(function), tuple(inputs.values()), os.path.join(folder, name + ".onnx"), input_names=list(inputs), opset_version=13)
