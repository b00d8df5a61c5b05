"""Seconds of the layer's two kinds of matrix product in PyTorch, in one process: OpenBLAS takes its kernels by OPENBLAS_CORETYPE once, and on some machines finds slow ones itself."""
import time

import numpy  # noqa: F401, which the peers need, too
import torch

PRODUCTS = [(torch.randn(16_384, 128), torch.randn(128, 48)), (torch.randn(1024, 128), torch.randn(128, 256))]


def once():
    start = time.perf_counter()
    for a, b in PRODUCTS:
        torch.mm(a, b)
    return time.perf_counter() - start


torch.set_num_threads(1)
print(min(once() for _ in range(20)))
