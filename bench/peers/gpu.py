"""
Times the library through its C ABI beside PyTorch, kvpress and compactor-vllm on one GPU: the same tensors, one stream, in turn, after their results agree.
Exit status: 0 done, 1 a disagreement or a failure, 124 time was over before everything was measured (what is left is named).
"""
import argparse
import ctypes as c
import datetime
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time

import torch

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "interop", "samples", "python")]
import compactor as cp
import gpu_peers as peers
from gpu_layer import LEVERAGE_CHUNK, Layer

MODELS = {"L8": (32, 8, 128), "qwen2.5-14b": (40, 8, 128)}
REPEATS = 9


class Clock:
    """Time of queued work: by events, behind a pause that lets the host queue it all; by the host's clock on the CPU."""

    def __init__(self, cuda):
        self.cuda = cuda

    def seconds(self, work, pause=0.0):
        if not self.cuda:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if pause:
            torch.cuda._sleep(int(min(pause, 0.05) * 2e9))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def wall(self, work):
        self.wait()
        start = time.perf_counter()
        work()
        queued = time.perf_counter() - start
        self.wait()
        return queued, time.perf_counter() - start

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()


class Rounds:
    """Calls of one side in turn over rotated inputs; a round is all inputs, or as many as about 20 ms allow."""

    def __init__(self, clock, call, copies):
        self._clock, self._call, self._copies, self._next = clock, call, copies, 0
        self._step()
        queued, wall = clock.wall(self._step)
        self.calls = max(1, min(copies, math.ceil(0.02 / wall)))
        self._pause = 1.3 * self.calls * queued + 2e-4
        self.times = []

    def _step(self):
        self._call(self._next % self._copies)
        self._next += 1

    def _round(self):
        for _ in range(self.calls):
            self._step()

    def run(self, keep=True):
        seconds = self._clock.seconds(self._round, self._pause) / self.calls
        if keep:
            self.times.append(seconds * 1e6)
        return seconds


def summary(times):
    return {"median": round(statistics.median(times), 3), "least": round(min(times), 3), "most": round(max(times), 3), "samples": [round(time, 3) for time in times]}


def revision(folder):
    """The commit of the checkout that a folder lies in, `-dirty` where files differ from it; null where it is none, or git is missing."""
    try:
        done = subprocess.run(["git", "-C", folder, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class Bench:
    def __init__(self, arguments):
        self.arguments, self.cuda, self.start, self.random = arguments, arguments.device == "cuda", time.monotonic(), random.Random(1)
        self.library, self.clock = cp.Library(arguments.library), Clock(self.cuda)
        self.log = cp.LogCallback(lambda user, level, message: print(message.decode(), file=sys.stderr))
        self.library.set_log(self.log, None)
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        options = cp.BackendOptions(kind=cp.BACKEND_CPU)
        if self.cuda:
            options = cp.BackendOptions(kind=cp.BACKEND_CUDA, device=torch.cuda.current_device(), stream=torch.cuda.current_stream().cuda_stream)
        self.backend = cp.handle(self.library.backend_open, c.byref(options))
        self.kvpress, self.vllm = peers.KvPress(arguments.kvpress), peers.CompactorVllm(arguments.compactor_vllm)
        version = c.CDLL(arguments.library).compactor_version
        version.restype = c.c_char_p
        library, _, commit = version().decode().partition("+")
        self.cache_bytes = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20) if self.cuda else 0
        self.result = {"benchmark": "GPU operations beside peers", "date": datetime.date.today().isoformat(), "commit": arguments.commit or commit or None, "backend": self.described().description.decode(),
                       "device": torch.cuda.get_device_name() if self.cuda else "cpu", "driver": driver() if self.cuda else None, "compiler": None, "torch": torch.__version__,
                       "library": library, "cuda": torch.version.cuda, "cache_bytes": self.cache_bytes, "repeats": REPEATS,
                       "peers": {"kvpress": self.kvpress.note, "compactor-vllm": self.vllm.note},
                       "peers_commits": {"kvpress": arguments.kvpress and revision(arguments.kvpress), "compactor-vllm": arguments.compactor_vllm and revision(arguments.compactor_vllm)}, "operations": [], "failures": [], "not_measured": []}

    def described(self):
        info = cp.BackendInfo()
        self.library.backend_describe(self.backend, c.byref(info))
        return info

    def over(self):
        return time.monotonic() - self.start > self.arguments.seconds

    def randn(self, *shape, scale=1.0):
        return (torch.randn(*shape, device=self.arguments.device, dtype=self.dtype) * scale).contiguous()

    def empty(self, *shape, dtype=torch.float32):
        return torch.empty(*shape, device=self.arguments.device, dtype=dtype)

    def copies(self, used):
        return max(1, min(32, math.ceil(4 * self.cache_bytes / used)))

    def floors(self):
        size, rows = (1 << 29, 8192) if self.cuda else (1 << 24, 512)
        a, b = self.empty(size, dtype=torch.uint8), self.empty(size, dtype=torch.uint8)
        m, n = self.randn(rows, rows), self.randn(rows, rows)
        for name, work, amount in (("copy_bytes_per_us", lambda: a.copy_(b), 2 * size), ("flops_per_us", lambda: torch.matmul(m, n), 2 * rows ** 3)):
            work()
            self.result[name] = amount / (1e6 * statistics.median(self.clock.seconds(work, 1e-3) for _ in range(REPEATS)))
        print(f"copy {self.result['copy_bytes_per_us'] / 1e6:.2f} TB/s read and written; matrix product {self.result['flops_per_us'] / 1e6:.0f} TFLOP/s")

    def compare(self, name, layer, ours, rivals, copies, bytes_=0, flops=0, check=None):
        """Times `ours(i)` and each of rivals {name: call(i)} in turn; check(rival name, result of call(0)) -> (error, tolerance), of results for input 0."""
        if self.over():
            self.result["not_measured"].append(f"{name}, {layer.model}, N {layer.tokens}")
            return None
        ours(0)
        self.library.backend_synchronize(self.backend)
        sides, agreement, failed = {"ours": Rounds(self.clock, ours, copies)}, {}, {}
        for rival, call in rivals.items():
            try:
                ours(0)
                outcome = call(0)
                self.clock.wait()
                if check:
                    error, tolerance = check(rival, outcome)
                    agreement[rival] = {"error": error, "tolerance": tolerance}
                    if not error <= tolerance:
                        failed[rival] = f"disagrees: {error:.3g}, at most {tolerance:.3g} is allowed"
                        self.result["failures"].append(f"{name}, {layer.model}, N {layer.tokens}: {rival} {failed[rival]}")
                        continue
                del outcome
                sides[rival] = Rounds(self.clock, call, copies)
            except cp.CompactorError:
                raise
            except Exception as error:  # a peer that cannot run is named in the table, with its reason
                failed[rival] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        for repeat in range(-1, REPEATS):
            for side in self.random.sample(list(sides.values()), len(sides)):
                side.run(keep=repeat >= 0)
        floor = max(bytes_ / self.result["copy_bytes_per_us"], flops / self.result["flops_per_us"])
        median = statistics.median(sides["ours"].times)
        entry = {"name": name, "model": layer.model, "tokens": layer.tokens, "copies": copies, "bytes": bytes_, "flops": flops, "ours_us": summary(sides["ours"].times),
                 "floor_us": round(floor, 3), "share_of_floor": round(floor / median, 4), "peers": {}, "peers_failed": failed}
        for rival, side in sides.items():
            if rival != "ours":
                ratios = [p / o for p, o in zip(side.times, sides["ours"].times)]
                entry["peers"][rival] = {"us": summary(side.times), "ratio": round(statistics.median(side.times) / median, 3), "least": round(min(ratios), 3),
                                         "most": round(max(ratios), 3), "ratios": [round(ratio, 5) for ratio in ratios], **agreement.get(rival, {})}
        self.result["operations"].append(entry)
        self.show(entry)
        self.library.backend_synchronize(self.backend)
        self.save()
        return {rival: statistics.median(side.times) for rival, side in sides.items()}

    def show(self, entry):
        start = f"{entry['model']:<12} N {entry['tokens']:>6}  {entry['name']:<34} {entry['ours_us']['median']:>11.1f}"
        end = f"{entry['floor_us']:>10.1f} {entry['share_of_floor']:>5.0%}" if entry["floor_us"] else f"{'-':>10} {'-':>5}"
        for rival, at in sorted(entry["peers"].items(), key=lambda item: item[1]["us"]["median"]):
            error = f"  differs by {at['error']:.1e}" if "error" in at else ""
            print(f"{start}  {rival:<44} {at['us']['median']:>12.1f} {at['ratio']:>7.2f} ({at['least']:.2f} to {at['most']:.2f}) {end}{error}", flush=True)
        if not entry["peers"]:
            print(f"{start}  {'no peer ran':<44} {end}")
        for rival, reason in entry["peers_failed"].items():
            print(f"  {rival} did not run: {reason}", flush=True)

    def save(self):
        self.result["compiler"] = self.described().compiler.decode() or None   # of the kernels loaded by now
        if self.arguments.json:
            with open(self.arguments.json + ".part", "w") as file:
                json.dump(self.result, file, indent=1)
            os.replace(self.arguments.json + ".part", self.arguments.json)


def driver():
    try:
        with open("/proc/driver/nvidia/version") as file:
            return file.readline().strip()
    except OSError as error:
        return f"unknown ({error})"


def run(arguments):
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    bench = Bench(arguments)
    for name, value in bench.result["peers"].items():
        print(f"{name}: {value}")
    print(f"{bench.result['device']}, PyTorch {torch.__version__}, library {bench.result['library']}: {bench.result['backend']}")
    bench.floors()
    print(f"{'layer':<22} {'operation':<34} {'ours us':>13}  {'peer':<44} {'peer us':>12} {'peer/ours (least to most)':>20} {'floor us':>10} share")
    for tokens in arguments.tokens:
        for model in arguments.model:
            layer = Layer(bench, model, MODELS[model], tokens)
            for operation in layer.operations():
                try:
                    operation()
                except (cp.CompactorError, RuntimeError) as error:  # the others are still measured
                    bench.result["failures"].append(f"{model}, N {tokens}: {type(error).__name__}: {error}")
                    print(f"FAILED: {bench.result['failures'][-1]}", flush=True)
                if arguments.device == "cuda":
                    torch.cuda.empty_cache()
    bench.library.backend_synchronize(bench.backend)
    bench.result["seconds"] = round(time.monotonic() - bench.start, 1)
    bench.save()
    for left in bench.result["not_measured"]:
        print(f"not measured, time was over: {left}")
    for failure in bench.result["failures"]:
        print(f"failed: {failure}")
    return 1 if bench.result["failures"] else 124 if bench.result["not_measured"] else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True, help="libcompactor_native.so")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768, 131072], help="lengths N, multiples of 512")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["L8"])
    parser.add_argument("--seconds", type=float, default=120, help="nothing new is begun after so many")
    parser.add_argument("--json", help="file to write; rewritten after every operation")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", help="operations whose names hold one of these")
    parser.add_argument("--commit", help="what the library was built from, instead of the commit that it says was checked out then")
    parser.add_argument("--kvpress", help="checkout of kvpress (the folder that holds the package)")
    parser.add_argument("--compactor-vllm", help="the src folder of a checkout of compactor-vllm")
    arguments = parser.parse_args()
    arguments.tokens = list(dict.fromkeys(arguments.tokens))
    arguments.model = list(dict.fromkeys(arguments.model))
    if any(tokens <= 0 or tokens % LEVERAGE_CHUNK for tokens in arguments.tokens):
        parser.error(f"--tokens takes multiples of {LEVERAGE_CHUNK}, and {arguments.tokens} holds others")
    unknown = [part for part in arguments.only or [] if not any(part in name for name in Layer.OPERATIONS)]
    if unknown:
        parser.error(f"no operation has {unknown[0]!r} in its name; there are {', '.join(Layer.OPERATIONS)}")
    arguments.library = os.path.abspath(arguments.library)  # a name without a folder would be looked for where the system's libraries are
    if not os.path.isfile(arguments.library):
        parser.error(f"there is no shared library at {arguments.library}; make it with dotnet publish interop/Compactor.Abi -c Release -r linux-x64 -o build/abi")
    if arguments.json:
        if os.path.isdir(arguments.json):
            parser.error(f"--json is {arguments.json}, which is a folder; name a file")
        try:
            open(arguments.json + ".part", "w").close()
            os.remove(arguments.json + ".part")
        except OSError as error:
            parser.error(f"--json is {arguments.json}, which cannot be written: {error.strerror}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu runs the same comparison on the CPU")
    if arguments.device == "cpu":
        with torch.inference_mode():
            return run(arguments)
    with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
        return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
