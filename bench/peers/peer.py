"""What the PyTorch peers share: they take turns with the library, in a process of their own.

A peer is started as `NAME.py DIR`; DIR holds its inputs as raw float32 files and their dimensions in shape.json. Each line on stdin is a
command, each answer one JSON line on stdout:
  tune      times every way of writing each part at 1 thread and at as many as the library has, each run as in a round, keeps the fastest of each and the better number of threads, and reports all
  outputs   writes the result to DIR/peer_outputs.bin, float32
  run       runs once and reports seconds
  graphs    writes the stage as ONNX graphs, for another peer
"""
import json
import os
import statistics
import sys
import time

import numpy
import torch

HOPELESS = 2  # a way that takes so many times the fastest's is not timed again
RUNS = 5
elsewhere = numpy.zeros(1 << 24, dtype=numpy.float32)

folder = sys.argv[1]
shape = json.load(open(os.path.join(folder, "shape.json")))


def load(name, *dims):
    return torch.from_numpy(numpy.fromfile(os.path.join(folder, name + ".bin"), dtype=numpy.float32).reshape(dims))


def seconds(compute, *arguments):
    start = time.perf_counter()
    compute(*arguments)
    return time.perf_counter() - start


def turn(compute, *arguments):
    """Seconds of a run as it is in a round: after a pause, with caches that somebody else filled."""
    numpy.add(elsewhere, 1, out=elsewhere)
    time.sleep(0.01)
    return seconds(compute, *arguments)


def answer(**fields):
    print(json.dumps(fields), flush=True)


def fastest(part, compute, ways, threads, timings):
    """The name of the fastest way, by the median of its turns after an untimed run; adds what was timed to `timings`."""
    best, chosen = float("inf"), None
    for name, way in ways.items():
        compute(way)
        runs = [turn(compute, way) for _ in range(2)]
        if min(runs) < HOPELESS * best:
            runs += [turn(compute, way) for _ in range(RUNS - 2)]
        took = statistics.median(runs)
        timings.append(dict(seconds=took, threads=threads, variant=name, part=part))
        if took < best:
            best, chosen = took, name
    return chosen


def serve(compute, **parts):
    """
    Serves commands. `parts` maps the name of a part to (function of a way, {name: way}); `compute` takes a way of each part, by its name, and gives one tensor or several.
    """
    threads, ways = 1, {part: next(iter(named)) for part, (_, named) in parts.items()}

    def whole(chosen):
        return compute(**{part: parts[part][1][name] for part, name in chosen.items()})

    with torch.inference_mode():
        for line in sys.stdin:
            command = line.strip()
            if command == "tune":
                timings, wholes = [], []
                for count in sorted({1, shape["threads"]}):
                    torch.set_num_threads(count)
                    chosen = {part: fastest(part, function, named, count, timings) for part, (function, named) in parts.items()}
                    whole(chosen)
                    wholes.append((statistics.median(turn(whole, chosen) for _ in range(RUNS)), count, chosen))
                took, threads, ways = min(wholes, key=lambda w: w[0])
                torch.set_num_threads(threads)
                answer(version=torch.__version__, threads=threads, variant="; ".join(ways.values()), seconds=took, timings=timings,
                       wholes=[dict(seconds=s, threads=count, variant="; ".join(chosen.values())) for s, count, chosen in wholes],
                       blas=next((p for p in open("/proc/self/maps").read().split() if "blas" in p and ".so" in p), "unknown"))
            elif command == "outputs":
                outputs = whole(ways)
                with open(os.path.join(folder, "peer_outputs.bin"), "wb") as file:
                    for tensor in outputs if isinstance(outputs, tuple) else (outputs,):
                        tensor.float().contiguous().numpy().tofile(file)
                answer(done=True)
            elif command == "run":
                answer(seconds=seconds(whole, ways))
            elif command == "graphs":
                import onnx_graphs
                with torch.inference_mode(False):
                    onnx_graphs.export()
                answer(done=True)
            else:
                answer(error="unknown command " + command)
