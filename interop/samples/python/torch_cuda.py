"""
Compresses one layer held in PyTorch CUDA tensors, on PyTorch's stream, without a copy and without a synchronisation before the end. Needs a GPU that PyTorch can
use, and NVRTC or compiled kernels; says so, with exit status 77, where they are not. COMPACTOR_LIBRARY names the shared library.
"""

import ctypes as c
import sys

import compactor as cp

TOKENS, QUERY_HEADS, KV_HEADS, DIM = 8192, 32, 8, 128
NOT_HERE = 77


def tensor(t):
    """A CUDA tensor [tokens, heads, dim] of any strides: its memory, not a copy."""
    import torch

    types = {torch.float32: cp.FLOAT32, torch.float16: cp.FLOAT16, torch.bfloat16: cp.BFLOAT16}
    assert t.is_cuda and t.stride(2) == 1, "the last dimension must be dense"
    size = t.element_size()
    last = (sum((n - 1) * stride for n, stride in zip(t.shape, t.stride())) + 1) * size
    return cp.Tensor(element_type=types[t.dtype], data=t.data_ptr(), data_bytes=last, tokens=t.shape[0], heads=t.shape[1], dim=t.shape[2],
                     token_stride=t.stride(0), head_stride=t.stride(1))


def main():
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed; this sample needs it and a GPU")
        return NOT_HERE
    if not torch.cuda.is_available():
        print("PyTorch finds no GPU here; this sample needs one")
        return NOT_HERE
    library = cp.Library()
    stream = torch.cuda.Stream()
    try:
        # the context of PyTorch is the device's primary one, which is what a NULL context adopts
        options = cp.BackendOptions(kind=cp.BACKEND_CUDA, device=torch.cuda.current_device(), stream=stream.cuda_stream)
        backend = cp.handle(library.backend_open, c.byref(options))
    except cp.CompactorError as error:
        print(error)
        return NOT_HERE

    with torch.cuda.stream(stream):
        key_pre_rope, key, value = (torch.randn(TOKENS, KV_HEADS, DIM, dtype=torch.bfloat16, device="cuda") for _ in range(3))
        query = torch.randn(TOKENS, QUERY_HEADS, DIM, dtype=torch.bfloat16, device="cuda")
        method = cp.Options()
        library.options_preset(cp.PRESET_PAPER, c.byref(method))
        cu_seqlens = (c.c_int32 * 2)(0, TOKENS)
        shape = cp.Shape(sequences=1, cu_seqlens=c.addressof(cu_seqlens), query_heads=QUERY_HEADS, kv_heads=KV_HEADS, head_dim=DIM, element_type=cp.BFLOAT16)
        budget = cp.Budget(unit=cp.BUDGET_RETENTION, amount=0.5)
        plan = cp.handle(library.plan_create, c.byref(shape), c.byref(method), c.byref(budget), 1)
        info = cp.PlanInfo()
        library.plan_describe(plan, c.byref(info))

        # PyTorch's allocations start on 512 bytes, which is more than the workspace asks for
        workspace = torch.empty(info.workspace_bytes, dtype=torch.uint8, device="cuda")
        indices = torch.empty(info.kept_pairs, dtype=torch.int32, device="cuda")
        offsets = torch.empty(KV_HEADS + 1, dtype=torch.int32, device="cuda")
        kept_key, kept_value = (torch.empty(info.kept_pairs, DIM, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        inputs = cp.Layer(key=c.pointer(tensor(key)), value=c.pointer(tensor(value)), key_pre_rope=c.pointer(tensor(key_pre_rope)), query=c.pointer(tensor(query)))
        library.compress_layer(
            backend, plan, c.byref(inputs), c.c_void_p(workspace.data_ptr()), c.c_uint64(info.workspace_bytes), c.c_void_p(indices.data_ptr()),
            c.c_int64(info.kept_pairs), c.c_void_p(offsets.data_ptr()), c.c_int64(KV_HEADS + 1), c.c_void_p(kept_key.data_ptr()),
            c.c_uint64(kept_key.numel() * 2), c.c_void_p(kept_value.data_ptr()), c.c_uint64(kept_value.numel() * 2))
        # queued behind it on the same stream: no wait is needed before PyTorch goes on with the results; scoring's verdict on the data comes where the host waits
        lengths = offsets.diff()
        first = indices[: int(lengths[0])].long()
        same = torch.equal(kept_key[: int(lengths[0])], key[first, 0]) and torch.equal(kept_value[: int(lengths[0])], value[first, 0])
    library.backend_synchronize(backend)
    print(f"kept {lengths.tolist()} of {TOKENS} tokens; survivors are the kept rows: {same}")
    library.plan_destroy(plan)
    library.backend_close(backend)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
