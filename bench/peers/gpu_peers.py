"""The method in plain PyTorch, and the published packages, for gpu.py. Keys are [N, Hkv, D], queries [N, Hq, D], scores [N, Hkv] float32."""
import functools
import importlib
import sys
import types

import torch

LOGITS_BYTES = 2 << 30


def leverage(keys, phi, chunk, epsilon, precise, inverse):
    """||L^-1 x||^2 of centred, sketched keys; `precise` sketches in float32, `inverse` multiplies by the inverse instead of solving."""
    tokens, heads, _ = keys.shape
    x = keys.transpose(0, 1)
    x = torch.matmul(x.float(), phi.float()) if precise else torch.matmul(x, phi.to(keys.dtype)).float()
    x = x.view(heads, -1, chunk or tokens, phi.shape[1])
    x = x - x.mean(-2, keepdim=True)
    gram = torch.matmul(x.transpose(-1, -2), x)
    gram.diagonal(dim1=-2, dim2=-1).add_(epsilon)
    factor = torch.linalg.cholesky(gram)
    if inverse:
        scores = (torch.matmul(x, torch.cholesky_inverse(factor)) * x).sum(-1)
    else:
        scores = torch.linalg.solve_triangular(factor, x.transpose(-1, -2), upper=False).square_().sum(-2)
    return scores.view(heads, tokens).t().contiguous()


def softmax_sum(q, k):
    return torch.bmm(q, k).softmax(-1, dtype=torch.float32).sum(1)


def exponentials(q, k):
    """Division and column sum as one product with the inverse row sums."""
    e = torch.bmm(q, k).float()
    e = e.sub_(e.amax(-1, keepdim=True)).exp_()
    return torch.bmm(e.sum(-1).reciprocal_().unsqueeze(1), e).squeeze(1)


def attention(queries, keys, chunk, columns, logits_bytes):
    """Column sums of the softmax within chunks, summed over the group; so many chunks at once as float32 logits fit in `logits_bytes`."""
    tokens, heads, dim = keys.shape
    group = queries.shape[1] // heads
    at_once = max(1, logits_bytes // (4 * queries.shape[1] * chunk * chunk))
    parts = []
    for first in range(0, tokens // chunk, at_once):
        rows = slice(first * chunk, min(tokens, (first + at_once) * chunk))
        q = queries[rows].view(-1, chunk, heads, group, dim).permute(0, 2, 3, 1, 4).reshape(-1, group * chunk, dim)
        k = keys[rows].view(-1, chunk, heads, dim).permute(0, 2, 3, 1).reshape(-1, dim, chunk)
        parts.append(columns(q, k).view(-1, heads, chunk).transpose(1, 2).reshape(-1, heads))
    return torch.cat(parts)


def z(x):
    return (x - x.mean(0)) / x.std(0, unbiased=False)


def fuse(outlier, attended, weight, first, last):
    pooled = torch.nn.functional.avg_pool1d(attended.t().unsqueeze(1), 3, 1, 1).squeeze(1).t()
    scores = z(pooled) + weight * z(outlier)
    scores[:first] = float("inf")
    scores[scores.shape[0] - last:] = float("inf")
    return scores


def select_sorted(scores, count):
    """Kept pairs as head * N + token, ascending."""
    return scores.t().reshape(-1).topk(count, sorted=False).indices.sort().values


def select_mask(scores, count):
    flat = scores.t().reshape(-1)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count, sorted=False).indices] = True
    return mask.nonzero().squeeze(1)


def gather(source, pairs):
    tokens, heads, dim = source.shape
    return source.reshape(tokens * heads, dim).index_select(0, pairs % tokens * heads + torch.div(pairs, tokens, rounding_mode="floor"))


def gather_indexed(source, pairs):
    tokens = source.shape[0]
    return source[pairs % tokens, torch.div(pairs, tokens, rounding_mode="floor")]


# Ways of writing each stage, of which the fastest counts.
WAYS = {
    "leverage": {f"PyTorch, {'float32' if precise else 'as keys'} sketch, {'inverse' if inverse else 'solve'}": functools.partial(leverage, precise=precise, inverse=inverse)
                 for precise in (False, True) for inverse in (False, True)},
    "attention": {f"PyTorch, {columns.__name__}, {amount >> 20} MiB of logits": functools.partial(attention, columns=columns, logits_bytes=amount)
                  for columns in (softmax_sum, exponentials) for amount in (32 << 20, LOGITS_BYTES)},
    "select": {"PyTorch topk, sorted": select_sorted, "PyTorch topk, mask": select_mask},
    "compact": {"PyTorch index_select": gather, "PyTorch indexing": gather_indexed},
}


def decode(query, key, value):
    """One new token a sequence, query [B, Hq, D], over a dense cache [B, Hkv, n, D]."""
    return torch.nn.functional.scaled_dot_product_attention(query.unsqueeze(2), key, value, enable_gqa=True).squeeze(2)


def decode_products(query, key, value):
    batch, heads, _, dim = key.shape
    logits = torch.matmul(query.view(batch, heads, -1, dim), key.transpose(2, 3)).float() * dim ** -0.5
    return torch.matmul(logits.softmax(-1).to(value.dtype), value).reshape(query.shape)


def decode_flash_rows(query, key, value):
    """A KV head's query heads as rows of one head's attention."""
    batch, heads, _, dim = key.shape
    return torch.nn.functional.scaled_dot_product_attention(query.view(batch, heads, -1, dim), key, value).reshape(query.shape)


def load(package, folder, modules):
    """
    Imports modules of a published package from a checkout's source folder, or from where it is installed. Where the package's own __init__ needs what is not here,
    the modules are loaded without it. Returns (modules, note); modules is None where that fails too.
    """
    if folder:
        sys.path.insert(0, folder)
    try:
        return [importlib.import_module(f"{package}.{m}") for m in modules], "imported"
    except Exception as error:  # whatever an __init__ raises is reported, and the modules are tried alone
        first = f"{type(error).__name__}: {error}".splitlines()[0]
    if not folder:
        return None, f"not importable ({first})"
    for name in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        del sys.modules[name]
    for name in {package, *(f"{package}.{m}".rsplit(".", 1)[0] for m in modules)}:
        bare = types.ModuleType(name)
        bare.__path__ = [f"{folder}/{name.replace('.', '/')}"]
        sys.modules[name] = bare
    try:
        return [importlib.import_module(f"{package}.{m}") for m in modules], f"modules without the package's __init__, which fails ({first})"
    except Exception as error:
        return None, f"not importable ({first}; modules alone: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"


class KvPress:
    def __init__(self, folder):
        found, self.note = load("kvpress", folder, ["presses.leverage_press", "presses.non_causal_attention_press", "presses.compactor_press"])
        self.here = found is not None
        if self.here:
            self._leverage, self._attention, self._press = found[0].LeverageScorePress, found[1].NonCausalAttnPress, found[2].CompactorPress
            self._repeat = found[1].repeat_kv

    def leverage(self, keys, dimension):
        """keys [1, Hkv, N, D]; Phi is drawn inside, from PyTorch's generator."""
        return self._leverage.compute_leverage_scores(keys, dimension)[0].t()

    def attention(self, queries, keys, chunk):
        groups = queries.shape[1] // keys.shape[1]
        a = self._attention.non_causal_chunked_attn(queries, self._repeat(keys, groups), chunk)[0]
        return a.view(keys.shape[1], groups, -1).mean(1).t()

    def layer(self, pre, queries, keys, values, removed):
        """CompactorPress.compress with projections that only take their columns, so that no product with weights is timed, and its score."""
        heads, kv_heads, tokens, dim = queries.shape[1], keys.shape[1], keys.shape[2], keys.shape[3]
        hidden = torch.cat([t.transpose(1, 2).reshape(1, tokens, -1) for t in (queries, pre)], -1)
        module = types.SimpleNamespace(head_dim=dim, config=types.SimpleNamespace(num_attention_heads=heads, num_key_value_heads=kv_heads),
                                       q_proj=lambda x: x[..., :heads * dim], k_proj=lambda x: x[..., heads * dim:])
        turn = torch.ones(1, tokens, dim, device=keys.device, dtype=keys.dtype), torch.zeros(1, tokens, dim, device=keys.device, dtype=keys.dtype)
        press = self._press(compression_ratio=removed)
        rest = module, hidden, keys, values, None, {"position_embeddings": turn}
        return lambda: press.compress(*rest), lambda: press.score(*rest)


class CompactorVllm:
    def __init__(self, folder):
        found, self.note = load("compactor_vllm", folder, ["compression.compactor", "compression.common", "kv_cache.store_kv_cache", "attention.sparse_decode_kernel"])
        self.here = found is not None
        if self.here:
            self._compactor, self._common, self._store, self._decode = found

    def leverage(self, keys, phi, chunk, normalize=False):
        return self._compactor.approximate_leverage_scores(keys, [keys.shape[0]], phi, chunk_size=chunk, normalize=normalize)

    def attention(self, queries, keys, chunk, cu_seqlens):
        return self._compactor.non_causal_attn_scores(queries, keys, keys, cu_seqlens, keys.shape[0], chunk, sm_scale=1.0, normalize=False)

    def select(self, scores, count, cu_seqlens):
        return self._common.scores_to_retain_indices(scores, cu_seqlens, scores.shape[0], count, scores.shape[1])

    def layer(self, pre, queries, keys, values, phi, count, cu_seqlens, store):
        """Both scores, selection, and survivors stored in its own paged cache, as its engine calls them."""
        tokens = keys.shape[0]
        outlier = self.leverage(pre, phi, 512, normalize=True)
        scores = self._compactor.non_causal_attn_scores(
            queries, keys, values, cu_seqlens, tokens, 128, sm_scale=1.0, normalize=True, accum_scores=outlier, context_lens=[tokens],
            protected_first_tokens=[16], protected_last_tokens=[64], accum_blending=0.5)
        kept = self.select(scores, count, cu_seqlens)
        self._store.prefill_store_topk_kv(new_keys=keys, new_vals=values, indices_topk=kept, bh_lens=torch.zeros_like(store["lengths"]), cu_seqlens_k=cu_seqlens,
                                          **{name: store[name] for name in ("num_tokens_to_retain", "page_table", "batch_mapping", "k_cache", "v_cache", "PAGE_SIZE")})
        return kept

    def decode(self, query, pool, lengths, tables, kv_heads, page):
        keys, values = pool
        return self._decode.head_sparse_decode_attention(query, keys, values, lengths, tables, torch.arange(query.shape[0], device=query.device, dtype=torch.int32), kv_heads, page)
