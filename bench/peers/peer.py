"""What the PyTorch peers share: they take turns with the library, in a process of their own.

A peer is started as `NAME.py DIR`; DIR holds its inputs as raw float32 files and their dimensions in shape.json. Each line on stdin is a
command, each answer one JSON line on stdout:
  tune      times every variant at 1 and 2 threads, keeps the fastest pair, and reports all
  outputs   writes the result to DIR/peer_outputs.bin, float32
  run       runs once and reports seconds
"""
import json
import os
import sys
import time

import numpy
import torch

folder = sys.argv[1]
shape = json.load(open(os.path.join(folder, "shape.json")))


def load(name, *dims):
    return torch.from_numpy(numpy.fromfile(os.path.join(folder, name + ".bin"), dtype=numpy.float32).reshape(dims))


def seconds(compute, variant):
    start = time.perf_counter()
    compute(variant)
    return time.perf_counter() - start


def answer(**fields):
    print(json.dumps(fields), flush=True)


def serve(compute, variants):
    """Serves commands; `compute(variant)` gives the result, `variants` maps names to the ways of writing it."""
    threads, name = 1, next(iter(variants))
    with torch.inference_mode():
        for line in sys.stdin:
            command = line.strip()
            if command == "tune":
                timings = []
                for count in (1, 2):
                    torch.set_num_threads(count)
                    for candidate, variant in variants.items():
                        seconds(compute, variant)
                        timings.append((min(seconds(compute, variant) for _ in range(3)), count, candidate))
                _, threads, name = min(timings)
                torch.set_num_threads(threads)
                answer(torch=torch.__version__, threads=threads, variant=name,
                       timings=[dict(seconds=s, threads=t, variant=v) for s, t, v in timings],
                       blas=next((p for p in open("/proc/self/maps").read().split() if "blas" in p and ".so" in p), "unknown"))
            elif command == "outputs":
                compute(variants[name]).contiguous().numpy().tofile(os.path.join(folder, "peer_outputs.bin"))
                answer(done=True)
            elif command == "run":
                answer(seconds=seconds(compute, variants[name]))
            else:
                answer(error="unknown command " + command)
