"""One layer's operations for gpu.py: the library's calls on PyTorch's memory, and the peers' on the same tensors."""
import ctypes as c
import math

import torch

import compactor as cp
import gpu_peers as peers

SKETCH, CHUNK, LEVERAGE_CHUNK, PAGE, RETENTION, SEQUENCES = 48, 256, 512, 128, 0.5, 32
TYPES = {torch.float32: cp.FLOAT32, torch.bfloat16: cp.BFLOAT16}


def view(t):
    return cp.Tensor(element_type=TYPES[t.dtype], data=t.data_ptr(), data_bytes=t.numel() * t.element_size(), tokens=t.shape[0], heads=t.shape[1], dim=t.shape[2],
                     token_stride=t.stride(0), head_stride=t.stride(1))


def at(t):
    return c.c_void_p(t.data_ptr())


def size(t):
    return c.c_uint64(t.numel() * t.element_size())


def count(t):
    return c.c_int64(t.numel())


def distance(result, expected):
    """Relative Frobenius distance."""
    return float((result.float() - expected.float()).norm() / expected.float().norm())


class Layer:
    def __init__(self, bench, model, heads, tokens):
        self.bench, self.model, self.tokens = bench, model, tokens
        self.query_heads, self.kv_heads, self.dim = heads
        self.key_bytes = tokens * self.kv_heads * self.dim * torch.empty(0, dtype=bench.dtype).element_size()
        self.cu = torch.tensor([0, tokens], dtype=torch.int32, device=bench.arguments.device)
        # bfloat16 numbers, as the library's own sketch has
        self.phi = (torch.randn(self.dim, SKETCH) / math.sqrt(SKETCH)).bfloat16().float().contiguous()
        self.phi_there = self.phi.to(bench.arguments.device, bench.dtype)
        self.fastest = {}  # PyTorch's way of each stage that was timed

    def operations(self):
        only = self.bench.arguments.only
        return [lambda n=name, f=make: self._begin(n, f) for name, make in self.OPERATIONS.items() if not only or any(part in name for part in only)]

    def _begin(self, name, make):
        if self.bench.over():
            self.bench.result["not_measured"].append(f"{name}, {self.model}, N {self.tokens}")
        else:
            make(self, name)

    def plan(self, preset=cp.PRESET_PAPER, **changes):
        options = cp.Options()
        self.bench.library.options_preset(preset, c.byref(options))
        for name, value in changes.items():
            setattr(options, name, value)
        cu = (c.c_int32 * 2)(0, self.tokens)
        shape = cp.Shape(sequences=1, cu_seqlens=c.addressof(cu), query_heads=self.query_heads, kv_heads=self.kv_heads, head_dim=self.dim, element_type=TYPES[self.bench.dtype])
        plan = cp.handle(self.bench.library.plan_create, c.byref(shape), c.byref(options), c.byref(cp.Budget(unit=cp.BUDGET_RETENTION, amount=RETENTION)), 1)
        info = cp.PlanInfo()
        self.bench.library.plan_describe(plan, c.byref(info))
        return plan, info, options

    def keys(self, copies, heads=None, scale=1.0):
        return [self.bench.randn(self.tokens, heads or self.kv_heads, self.dim, scale=scale) for _ in range(copies)]

    def queries(self, copies):
        return self.keys(copies, self.query_heads, 3 / math.sqrt(self.dim))

    def scores(self):
        return self.bench.empty(self.tokens, self.kv_heads)

    def leverage(self, name, chunk, reads):
        bench, copies = self.bench, self.bench.copies(self.key_bytes)
        plan, _, options = self.plan(leverage_chunk=chunk)
        keys, out = self.keys(copies), self.scores()
        views, call = [view(k) for k in keys], bench.library.leverage

        def with_phi(i, phi, n):
            call(bench.backend, plan, c.byref(views[i]), None, phi, c.c_int64(n), at(out), count(out))

        def ours(i):
            with_phi(i, None, 0)

        ways = peers.WAYS["leverage"]
        rivals = {label: lambda i, way=way: way(keys[i], self.phi_there, chunk, options.epsilon) for label, way in ways.items()}
        if bench.vllm.here:
            rivals["compactor-vllm"] = lambda i: bench.vllm.leverage(keys[i], self.phi_there, chunk)
        if bench.kvpress.here and chunk == 0:
            headed = [k.transpose(0, 1).unsqueeze(0).contiguous() for k in keys]
            rivals["kvpress"] = lambda i: bench.kvpress.leverage(headed[i], SKETCH)

        def check(rival, result):
            phi = self.phi
            if rival == "kvpress":  # its Phi is drawn inside: the same again, from the same seed
                torch.manual_seed(2)
                result = rivals[rival](0)
                phi = self._kvpress_phi(keys[0].device)
            with_phi(0, at(phi), phi.numel())
            bench.library.backend_synchronize(bench.backend)
            exact = bench.dtype == torch.float32
            return distance(result, out), (1e-3 if exact else 5e-2 if rival in ("kvpress", "compactor-vllm") else 1e-2)

        times = bench.compare(name, self, ours, rivals, copies, reads * self.key_bytes, 0, check)
        if chunk == 0:
            self._keep_fastest("leverage", times)

    def _kvpress_phi(self, device):
        """What kvpress draws after the seed 2."""
        torch.manual_seed(2)
        return (torch.randn(1, self.kv_heads, self.dim, SKETCH, device=device, dtype=self.bench.dtype) * (1 / math.sqrt(SKETCH))).float().cpu().contiguous()

    def _keep_fastest(self, stage, times):
        timed = {label: times[label] for label in peers.WAYS[stage] if label in (times or {})}
        if timed:
            self.fastest[stage] = peers.WAYS[stage][min(timed, key=timed.get)]

    def attention(self, name):
        bench = self.bench
        used = self.key_bytes * (1 + self.query_heads // self.kv_heads)
        copies = bench.copies(used)
        plan, _, _ = self.plan()
        keys, queries, out = self.keys(copies), self.queries(copies), self.scores()
        pairs = [(view(q), view(k)) for q, k in zip(queries, keys)]
        ways = peers.WAYS["attention"]
        rivals = {label: lambda i, way=way: way(queries[i], keys[i], CHUNK) for label, way in ways.items()}
        if bench.vllm.here:
            rivals["compactor-vllm"] = lambda i: bench.vllm.attention(queries[i], keys[i], CHUNK, self.cu)
        if bench.kvpress.here:
            headed = [[t.transpose(0, 1).unsqueeze(0).contiguous() for t in (q, k)] for q, k in zip(queries, keys)]
            rivals["kvpress"] = lambda i: bench.kvpress.attention(*headed[i], CHUNK)

        def check(rival, result):
            scale = self.query_heads // self.kv_heads if rival == "kvpress" else 1  # it takes the mean of a group
            return distance(result * scale, out), 1e-3 if bench.dtype == torch.float32 else 2e-2

        times = bench.compare(name, self, lambda i: bench.library.attention_scores(bench.backend, plan, c.byref(pairs[i][0]), c.byref(pairs[i][1]), at(out), count(out)), rivals, copies,
                              used, 2 * self.tokens * CHUNK * self.query_heads * self.dim, check)
        self._keep_fastest("attention", times)

    def _kept(self, info):
        return self.bench.empty(info.kept_pairs, dtype=torch.int32), self.bench.empty(self.kv_heads + 1, dtype=torch.int32)

    def _pairs(self, indices, offsets):
        """Kept pairs as head * N + token."""
        head = torch.repeat_interleave(torch.arange(self.kv_heads, device=indices.device), offsets.long().diff())
        return head * self.tokens + indices.long()

    def _missing(self, pairs, expected):
        """Share of the expected pairs that is not among `pairs`."""
        mask = torch.zeros(self.tokens * self.kv_heads, dtype=torch.bool, device=pairs.device)
        mask[pairs] = True
        return 1 - float(mask[expected].float().mean())

    def _fused(self, options):
        scores = self.bench.randn(self.tokens, self.kv_heads).float()
        scores[:options.protect_first] = float("inf")
        scores[self.tokens - options.protect_last:] = float("inf")
        return scores

    def select(self, name):
        """Scores were just written when they are selected from: they are in the cache, and memory is no floor."""
        bench, (plan, info, options) = self.bench, self.plan()
        scores = self._fused(options)
        indices, offsets = self._kept(info)
        ways = peers.WAYS["select"]
        rivals = {label: lambda i, way=way: way(scores, info.kept_pairs) for label, way in ways.items()}
        if bench.vllm.here:
            rivals["compactor-vllm"] = lambda i: bench.vllm.select(scores, info.kept_pairs, self.cu)

        def check(rival, result):
            if rival == "compactor-vllm":
                result = self._head_major(result)
            return self._missing(self._pairs(indices, offsets), result), 0.01

        times = bench.compare(name, self, lambda i: self._select(plan, scores, indices, offsets), rivals, 1, check=check)
        self._keep_fastest("select", times)

    def _head_major(self, flat):
        """token * Hkv + head as head * N + token."""
        flat = flat.reshape(-1)
        return flat % self.kv_heads * self.tokens + torch.div(flat, self.kv_heads, rounding_mode="floor")

    def _select(self, plan, scores, indices, offsets):
        self.bench.library.select(self.bench.backend, plan, at(scores), count(scores), at(indices), count(indices), at(offsets), count(offsets))

    def compact(self, name):
        bench, (plan, info, options) = self.bench, self.plan()
        copies = bench.copies(2 * self.key_bytes)
        keys, values = self.keys(copies), self.keys(copies)
        indices, offsets = self._kept(info)
        self._select(plan, self._fused(options), indices, offsets)
        bench.library.backend_synchronize(bench.backend)
        pairs, kept = self._pairs(indices, offsets), [bench.empty(info.kept_pairs, self.dim, dtype=bench.dtype) for _ in range(2)]
        views = [(view(k), view(v)) for k, v in zip(keys, values)]

        def ours(i):
            for source, out in zip(views[i], kept):
                bench.library.compact(bench.backend, plan, c.byref(source), at(indices), count(indices), at(offsets), count(offsets), at(out), size(out))

        ways = peers.WAYS["compact"]
        rivals = {label: lambda i, way=way: (way(keys[i], pairs), way(values[i], pairs)) for label, way in ways.items()}
        times = bench.compare(name, self, ours, rivals, copies, 4 * info.kept_pairs * self.dim * keys[0].element_size(), 0,
                              lambda rival, result: (float(sum((r != o).sum() for r, o in zip(result, kept))), 0.0))
        self._keep_fastest("compact", times)

    def decode(self, name):
        bench, length = self.bench, int(self.tokens * RETENTION)
        blocks = -(-length // PAGE)
        used = 2 * self.kv_heads * blocks * PAGE * self.dim * torch.empty(0, dtype=bench.dtype).element_size()
        free = torch.cuda.mem_get_info()[0] if bench.cuda else 1 << 28
        batch = max(1, min(SEQUENCES, int(free * 0.6) // (2 * used)))
        rows = batch * self.kv_heads
        copies = max(1, min(bench.copies(batch * used), int(free * 0.6) // (2 * used * batch)))
        pools = [[bench.randn(rows * blocks, PAGE, self.dim) for _ in range(2)] for _ in range(copies)]
        query = bench.randn(batch, self.query_heads, self.dim, scale=3 / math.sqrt(self.dim))
        tables = torch.randperm(rows * blocks, device=query.device).to(torch.int32).view(rows, blocks)
        lengths = torch.full((rows,), length, dtype=torch.int32, device=query.device)
        dense = [[p[tables.long().view(-1)].view(batch, self.kv_heads, blocks * PAGE, self.dim)[:, :, :length] for p in pool] for pool in pools]
        out = bench.empty(batch, self.query_heads, self.dim)
        PagedView = cp._struct("PagedView", *((n, c.c_int32 if n in ("element_type", "blocks", "block_size", "kv_heads", "dim") else c.c_void_p if n in ("keys", "values") else c.c_uint64)
                                              for n in ("element_type", "keys", "values", "bytes", "blocks", "block_size", "kv_heads", "dim", "block_stride", "slot_stride", "head_stride")))
        views = [PagedView(element_type=TYPES[bench.dtype], keys=k.data_ptr(), values=v.data_ptr(), bytes=k.numel() * k.element_size(), blocks=rows * blocks, block_size=PAGE,
                           kv_heads=self.kv_heads, dim=self.dim, block_stride=PAGE * self.dim, slot_stride=self.dim) for k, v in pools]
        queried = view(query)

        def ours(i):
            bench.library.decode_attention(bench.backend, c.byref(views[i]), c.byref(queried), at(tables), count(tables), blocks, at(lengths), rows, None, at(out), count(out), None, c.c_int64(0))

        rivals = {f"PyTorch {label}, dense": lambda i, f=f: f(query, *dense[i]) for label, f in
                  (("attention", peers.decode), ("attention, group as rows", peers.decode_flash_rows), ("products", peers.decode_products))}
        if bench.vllm.here:
            flat = [[p.view(-1, self.dim) for p in pool] for pool in pools]
            shaped = tables.view(batch, self.kv_heads, blocks), lengths.view(batch, self.kv_heads)
            rivals["compactor-vllm, paged"] = lambda i: bench.vllm.decode(query, flat[i], shaped[1], shaped[0], self.kv_heads, PAGE)
        bench.compare(f"{name}, {batch} sequences", self, ours, rivals, copies, 2 * rows * length * self.dim * query.element_size(), 0,
                      lambda rival, result: (distance(result, out), 1e-2))

    def _whole(self, preset, copies):
        """Tensors of whole layers, and the library's call on them: (pre-RoPE keys, queries, keys, values), call, kept indices, offsets, plan info, options."""
        bench, (plan, info, options) = self.bench, self.plan(preset)
        pre, keys, values, queries = self.keys(copies), self.keys(copies), self.keys(copies), self.queries(copies)
        indices, offsets = self._kept(info)
        workspace = bench.empty(info.workspace_bytes + 256, dtype=torch.uint8)
        aligned = c.c_void_p(-(-workspace.data_ptr() // 256) * 256)
        kept = [bench.empty(info.kept_pairs, self.dim, dtype=bench.dtype) for _ in range(2)]
        views = [[view(t) for t in row] for row in zip(keys, values, pre, queries)]
        plain = [cp.Layer(key=c.pointer(k), value=c.pointer(v), key_pre_rope=c.pointer(p), query=c.pointer(q)) for k, v, p, q in views]
        k, v, p, q = views[0]

        def call(i, phi=None):
            layer = plain[i] if phi is None else cp.Layer(key=c.pointer(k), value=c.pointer(v), key_pre_rope=c.pointer(p), query=c.pointer(q), phi=phi.data_ptr(), phi_count=phi.numel())
            bench.library.compress_layer(bench.backend, plan, c.byref(layer), aligned, c.c_uint64(info.workspace_bytes), at(indices), count(indices), at(offsets), count(offsets),
                                         at(kept[0]), size(kept[0]), at(kept[1]), size(kept[1]))

        call.memory = workspace, views
        return (pre, queries, keys, values), call, indices, offsets, info, options

    def _agrees(self, call, indices, offsets, result, phi, tolerance):
        call(0, phi)
        self.bench.library.backend_synchronize(self.bench.backend)
        return self._missing(self._pairs(indices, offsets), result), tolerance

    def layer(self, name):
        """All of a layer's compression, survivors moved; no floor is stated for it."""
        bench, copies = self.bench, self.bench.copies(self.key_bytes)
        (pre, queries, keys, values), call, indices, offsets, info, options = self._whole(cp.PRESET_PAPER, copies)
        leverage, attention, select, gather = (self.fastest.get(stage, next(iter(ways.values()))) for stage, ways in peers.WAYS.items())
        label = "PyTorch, its fastest stages" if len(self.fastest) == len(peers.WAYS) else "PyTorch, stages not all timed"

        def formula(i):
            outlier = leverage(pre[i], self.phi_there, 0, options.epsilon)
            scores = peers.fuse(outlier, attention(queries[i], keys[i], CHUNK), options.leverage_weight, options.protect_first, options.protect_last)
            pairs = select(scores, info.kept_pairs)
            return pairs, gather(keys[i], pairs), gather(values[i], pairs)

        bench.compare(name, self, call, {label: formula}, copies, check=lambda rival, result: self._agrees(call, indices, offsets, result[0], self.phi, 0.01))

    def layer_kvpress(self, name):
        bench, copies = self.bench, self.bench.copies(self.key_bytes)
        if not bench.kvpress.here:
            return
        tensors, call, indices, offsets, info, _ = self._whole(cp.PRESET_KVPRESS, copies)
        device = tensors[0][0].device
        presses = [bench.kvpress.layer(*(t.transpose(0, 1).unsqueeze(0).contiguous() for t in row), 1 - RETENTION) for row in zip(*tensors)]

        def check(rival, result):
            phi = self._kvpress_phi(device)
            torch.manual_seed(2)
            kept = presses[0][1]().topk(result[0].shape[2], dim=-1).indices[0]
            pairs = (kept + self.tokens * torch.arange(self.kv_heads, device=device).unsqueeze(1)).reshape(-1)
            return self._agrees(call, indices, offsets, pairs, phi, 0.05)

        bench.compare(name, self, call, {"kvpress CompactorPress.compress": lambda i: presses[i][0]()}, copies, check=check)

    def layer_vllm(self, name):
        bench, copies = self.bench, self.bench.copies(self.key_bytes)
        if not bench.vllm.here:
            return
        (pre, queries, keys, values), call, indices, offsets, info, _ = self._whole(cp.PRESET_COMPACTOR_VLLM, copies)
        pages = -(-self.tokens // PAGE)
        device = keys[0].device
        store = {"lengths": torch.zeros(1, self.kv_heads, dtype=torch.int32, device=device), "num_tokens_to_retain": torch.tensor([info.kept_pairs], dtype=torch.int32, device=device),
                 "page_table": torch.arange(2 * self.kv_heads * pages, dtype=torch.int32, device=device).view(2, self.kv_heads, pages),
                 "batch_mapping": torch.ones(1, dtype=torch.int32, device=device), "PAGE_SIZE": PAGE,
                 **{cache: bench.empty(2 * self.kv_heads * pages * PAGE, self.dim, dtype=bench.dtype) for cache in ("k_cache", "v_cache")}}
        bench.compare(name, self, call, {"compactor-vllm, its engine's calls": lambda i: bench.vllm.layer(pre[i], queries[i], keys[i], values[i], self.phi_there, info.kept_pairs, self.cu, store)},
                      copies, check=lambda rival, result: self._agrees(call, indices, offsets, self._head_major(result), self.phi, 0.05))

    OPERATIONS = {f"leverage, chunk {LEVERAGE_CHUNK}": lambda self, name: self.leverage(name, LEVERAGE_CHUNK, 1), "leverage, whole sequence": lambda self, name: self.leverage(name, 0, 2),
                  f"attention scores, C {CHUNK}": attention, "select": select, "compact": compact,
                  "whole layer, paper": layer, "whole layer, kvpress": layer_kvpress, "whole layer, compactor-vllm": layer_vllm, "decode attention": decode}
