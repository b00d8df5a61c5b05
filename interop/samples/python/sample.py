"""Compresses one layer held in numpy arrays and checks the result against plain attention over the kept rows. COMPACTOR_LIBRARY names the shared library."""

import ctypes as c
import sys

import numpy as np

import compactor as cp

TOKENS, QUERY_HEADS, KV_HEADS, DIM = 500, 8, 2, 64


def tensor(array):
    """A numpy array [tokens, heads, dim] of any strides as the library takes it: its memory, not a copy."""
    types = {np.dtype(np.float32): cp.FLOAT32, np.dtype(np.float16): cp.FLOAT16}
    tokens, heads, dim = array.shape
    size = array.itemsize
    assert array.strides[2] == size, "the last dimension must be dense"
    last = sum((n - 1) * stride for n, stride in zip(array.shape, array.strides)) + size
    return cp.Tensor(element_type=types[array.dtype], data=array.ctypes.data, data_bytes=last, tokens=tokens, heads=heads, dim=dim,
                     token_stride=array.strides[0] // size, head_stride=array.strides[1] // size)


def main():
    library = cp.Library()
    log = cp.LogCallback(lambda user, level, message: print(message.decode(), file=sys.stderr))
    library.set_log(log, None)
    backend = cp.handle(library.backend_open, c.byref(cp.BackendOptions(kind=cp.BACKEND_CPU)))  # numpy's arrays are in host memory

    random = np.random.default_rng(1)
    # [heads, tokens, dim] underneath, as engines often have it; the views below are not contiguous
    key, value = (random.standard_normal((KV_HEADS, TOKENS, DIM)).astype(np.float16).transpose(1, 0, 2) for _ in range(2))
    query = random.standard_normal((TOKENS, QUERY_HEADS, DIM)).astype(np.float16)

    options = cp.Options()
    library.options_preset(cp.PRESET_PAPER, c.byref(options))
    options.selection_scope = cp.SELECT_HEAD
    cu_seqlens = np.array([0, TOKENS], np.int32)
    shape = cp.Shape(sequences=1, cu_seqlens=cu_seqlens.ctypes.data, query_heads=QUERY_HEADS, kv_heads=KV_HEADS, head_dim=DIM, element_type=cp.FLOAT16)
    budget = cp.Budget(unit=cp.BUDGET_RETENTION, amount=0.25)
    plan = cp.handle(library.plan_create, c.byref(shape), c.byref(options), c.byref(budget), 1)
    info = cp.PlanInfo()
    library.plan_describe(plan, c.byref(info))

    # the caller owns all memory: outputs, and a workspace on a boundary of 256 bytes
    workspace = np.zeros(info.workspace_bytes + 256, np.uint8)
    aligned = -(-workspace.ctypes.data // 256) * 256
    indices, offsets = np.zeros(info.kept_pairs, np.int32), np.zeros(KV_HEADS + 1, np.int32)
    kept_key, kept_value = (np.zeros((info.kept_pairs, DIM), np.float16) for _ in range(2))
    rotary = cp.Rotary(rotary_dim=DIM, theta=10000.0)
    inputs = cp.Layer(key=c.pointer(tensor(key)), value=c.pointer(tensor(value)), query=c.pointer(tensor(query)), rotary=c.pointer(rotary))
    library.compress_layer(
        backend, plan, c.byref(inputs), c.c_void_p(aligned), c.c_uint64(info.workspace_bytes), c.c_void_p(indices.ctypes.data), c.c_int64(indices.size),
        c.c_void_p(offsets.ctypes.data), c.c_int64(offsets.size), c.c_void_p(kept_key.ctypes.data), c.c_uint64(kept_key.nbytes), c.c_void_p(kept_value.ctypes.data),
        c.c_uint64(kept_value.nbytes))

    for head in range(KV_HEADS):
        rows = indices[offsets[head]:offsets[head + 1]]
        assert np.all(np.diff(rows) > 0), "kept tokens ascend"
        assert {*range(4), *range(TOKENS - 16, TOKENS)} <= set(rows), "protected tokens are kept"
        assert np.array_equal(kept_key[offsets[head]:offsets[head + 1]], key[rows, head]), "survivors are the kept rows"
        assert np.array_equal(kept_value[offsets[head]:offsets[head + 1]], value[rows, head]), "survivors are the kept rows"
    print(f"kept {np.diff(offsets).tolist()} of {TOKENS} tokens a head")

    try:
        library.plan_create(None, None, None, 0, None)
        raise AssertionError("a call without arguments succeeded")
    except cp.CompactorError as error:
        print(f"a wrong call says: {error}")
    library.plan_destroy(plan)
    library.backend_close(backend)


if __name__ == "__main__":
    main()
