"""Proves that the kernels' tests notice faults: takes away, one at a time, each barrier, wait and bound check of cuda/, and runs the tests that come by it;
those of a bound that is not missed run under AddressSanitizer too, where there is a build with it.

    cmake -S tests/simt -B build/simt && cmake --build build/simt --target simt && python3 tests/simt/mutate.py build/simt [--sanitized build/simt-sanitized] [--only TEXT | --every N] [--list] [--jobs N] [--json FILE]

All faults are compiled in at once, each behind a switch (planted.hpp), so a test is compiled once and not once a fault.
At least 90 % of the faults must make a test fail, and each survivor must stand in survivors.txt with the reason why it is harmless (bounds only where the sanitizers looked too). A test that does not end counts as failing.
"""
import argparse
import concurrent.futures
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNTOUCHED = {"ptx.cuh", "ptx_sm90a.cuh", "types.cuh"}

# What is taken away as it stands, and what for.
STATEMENTS = [
    ("barrier", re.compile(r"__syncthreads\(\);|__syncwarp\([^;]*\);|(?<!void )named_barrier\([^;{]*\);"), lambda m: ";"),
    ("wait", re.compile(r"cp_async_wait<[^;]*>\(\);"), lambda m: ";"),
    ("wait", re.compile(r"cp_async_wait<([^;]*)>\(\);"), lambda m: f"cp_async_wait<({m[1]}) + 1>();"),
    ("wait", re.compile(r"(?<!void )\bwait\([^;{]*\);|wgmma_wait(_but<\d>)?\([^;{]*\);"), lambda m: ";"),
    ("commit", re.compile(r"(?<!void )(cp_async|wgmma)_commit\(\);"), lambda m: ";"),
    ("fence", re.compile(r"(?<!void )(fence_async_proxy|wgmma_fence)\(\);"), lambda m: ";"),
]
ORDERED = re.compile(r"(?<!u32 )atomic_add_acq_rel\(")
RELATION = re.compile(r"[\w)\]] (<|<=|>|>=) [\w(\-]")


@dataclass
class Fault:
    """`number` switches it on; what stands at start..end of the file becomes the replacement."""
    number: int
    kind: str
    file: str
    name: str
    start: int
    end: int
    replacement: str


def closing(text, opening):
    """Where the parenthesis at `opening` is closed."""
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError("a parenthesis is not closed")


def mutations(text):
    """(kind, start, end, replacement) of each fault that can be planted in a source."""
    code = re.sub(r"//[^\n]*", lambda m: " " * len(m[0]), text)
    for kind, pattern, replacement in STATEMENTS:
        for m in pattern.finditer(code):
            yield kind, m.start(), m.end(), replacement(m)
    for m in ORDERED.finditer(code):
        end = closing(code, m.end() - 1) + 1
        yield "order", m.start(), end, "atomic_add_global(" + code[m.end():end]
    for m in re.finditer(r"(?<!constexpr )\bif \(", code):
        if "if constexpr" in code[max(0, m.start() - 12):m.end()]:
            continue
        end = closing(code, m.end() - 1)
        condition = code[m.end():end]
        if RELATION.search(condition):
            leaves = re.match(r"\s*\{?\s*(return|continue|break)\b", code[end + 1:])
            yield "bound", m.end(), end, "false" if leaves else "true"
    # `index < count ? value : 0`: the value in any case.
    for m in re.finditer(r"([\w.\[\]()>+\-* ]*[\w)\]] (<|>=) [\w.]+) \? ", code):
        if "constexpr" not in code[code.rfind("\n", 0, m.start()):m.start()] and balanced(m[1]):
            yield "bound", m.end(1) - len(m[1].lstrip().removeprefix("return ")), m.end(1), "true" if m[2] == "<" else "false"


def balanced(text):
    """Whether every parenthesis is closed, and none before it is opened."""
    depth = [0]
    for c in text:
        depth.append(depth[-1] + {"(": 1, ")": -1}.get(c, 0))
    return min(depth) == depth[-1] == 0


def identity(file, text, start, end, replacement):
    """What survivors.txt calls a fault: file, the line it is in and how often that line came before, what becomes of it."""
    first = text.rfind("\n", 0, start) + 1
    line = text[first:text.find("\n", end)].split("//")[0].strip()
    before = text[:first].count(line)
    return f"{file}: {' '.join(line.split())}{f' ({before + 1})' if before else ''} => {'removed' if replacement == ';' else replacement.strip()}"


def all_faults():
    faults = []
    for path in sorted([*(ROOT / "cuda").glob("*.cu"), *(ROOT / "cuda").glob("*.cuh")]):
        if path.name not in UNTOUCHED:
            text = path.read_text()
            for kind, start, end, replacement in mutations(text):
                faults.append(Fault(len(faults), kind, path.name, identity(path.name, text, start, end, replacement), start, end, replacement))
    return faults


def switched(text, faults, start=0, end=None):
    """A source in which every fault stands beside what it replaces; one fault may lie within another."""
    end = len(text) if end is None else end
    out, at = [], start
    faults = sorted((f for f in faults if start <= f.start and f.end <= end), key=lambda f: (f.start, -f.end))
    while faults:
        here = [f for f in faults if (f.start, f.end) == (faults[0].start, faults[0].end)]
        inside = [f for f in faults if f not in here and f.start < here[0].end]
        kept = switched(text, inside, here[0].start, here[0].end)
        out.append(text[at:here[0].start])
        if kept.endswith(";"):
            out.append("{ " + "".join(f"if (planted::on({f.number})) {{ {f.replacement} }} else " for f in here) + f"{{ {kept} }} }}")
        else:
            out.append("(" + "".join(f"planted::on({f.number}) ? {f.replacement} : " for f in here) + f"({kept}))")
        at = here[0].end
        faults = [f for f in faults if f.start >= at]
    return "".join(out) + text[at:end]


def includes(file, folder):
    found, open_ = set(), [file]
    while open_:
        name = open_.pop()
        if name not in found and (folder / name).exists():
            found.add(name)
            open_ += re.findall(r'#include "(?:\.\./)*(?:cuda/)?([\w.]+)"', (folder / name).read_text())
    return found


class Test:
    """A variant of a kernel's test, compiled from the sources with switches as the build compiles the ones without, when it is first needed."""

    def __init__(self, entry, library, root, planted):
        self.root, self.library, self.lock, self.met = root, library, threading.Lock(), None
        source = Path(entry["file"])
        arguments = [a.replace(str(ROOT / "cuda"), str(root / "cuda")).replace(str(ROOT / "tests"), str(root / "tests")) for a in shlex.split(entry["command"])]
        self.output = arguments.index("-o") + 1
        self.name = Path(arguments[self.output]).parts[-3].removesuffix(".dir")
        self.program = root / f"{self.name}{'.sanitized' if any(a.startswith('-fsanitize=address') for a in arguments) else ''}"
        arguments[self.output] = f"{self.program}.o"
        self.arguments = [arguments[0], f"-DSIMT_PLANTED_FAULTS={planted}", "-include", str(root / "tests/simt/planted.hpp"), *arguments[1:], "-w"]
        named = re.findall(r'#include "([\w./]+)"', source.read_text())
        for local in list(named):
            if (source.parent / local).exists():
                named += re.findall(r'#include "([\w./]+)"', (source.parent / local).read_text())
        self.files = set().union(*(includes(Path(i).name, ROOT / "cuda") for i in named))

    def run(self, environment, seconds):
        try:
            done = subprocess.run([self.program], capture_output=True, text=True, errors="replace", timeout=seconds, env={**os.environ, **environment})
        except subprocess.TimeoutExpired:
            return "does not end"
        return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["crashed"])[0]

    def comes_by(self, fault):
        """Whether the test, without a fault, gets to where it would be."""
        with self.lock:
            if self.met is None:
                subprocess.run(self.arguments, check=True, cwd=self.root)
                sanitizers = [a for a in self.arguments if a.startswith("-fsanitize=") and a != "-fsanitize=thread"]
                subprocess.run([self.arguments[0], *sanitizers, f"{self.program}.o", str(self.library), f"-Wl,-rpath,{self.library.parent}", "-o", str(self.program)], check=True)
                os.remove(f"{self.program}.o")
                began = time.monotonic()
                said = self.run({"SIMT_MET": f"{self.program}.met"}, 600)
                if said:
                    raise RuntimeError(f"{self.name} fails without a fault: {said}")
                self.seconds = time.monotonic() - began
                self.met = {int(line) for line in Path(f"{self.program}.met").read_text().split()}
        return fault.number in self.met

    def notices(self, fault):
        """'' when it passes with the fault, otherwise what it said. One that takes twenty times as long does not end."""
        return self.run({"SIMT_PLANTED": str(fault.number)}, 30 + 20 * self.seconds)


def tests_of(build, root, planted):
    """The kernels' tests of a build folder."""
    library = (build / "libsimt.so").resolve(strict=True)
    return [Test(c, library, root, planted) for c in json.loads((build / "compile_commands.json").read_text()) if "/simt/kernels/" in c["file"]]


def plant(fault, tests):
    """Switches a fault on and runs tests until one fails; which did and what it said, '' for none, 'no test comes by it'."""
    verdict = "no test comes by it"
    for test in tests:
        if fault.file in test.files and test.comes_by(fault):
            said = test.notices(fault)
            if said:
                return f"{test.name}: {said}"
            verdict = ""
    return verdict


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("build", type=Path, help="build folder of tests/simt")
    options.add_argument("--sanitized", type=Path, help="build folder of tests/simt with COMPACTOR_SANITIZE")
    options.add_argument("--only", default="", help="faults whose line of --list contains this text")
    options.add_argument("--every", type=int, default=1, help="only each N-th fault; then it is enough that survivors have their reason")
    options.add_argument("--list", action="store_true", help="print the faults and plant none")
    options.add_argument("--jobs", type=int, default=os.cpu_count())
    options.add_argument("--json", type=Path, help="file that gets each fault with what became of it")
    given = options.parse_args()

    reasons = dict(line.split(" | ", 1) for line in (ROOT / "tests/simt/survivors.txt").read_text().splitlines() if " | " in line)
    every_fault = all_faults()
    faults = [f for f in every_fault if given.only in f"{f.kind}: {f.name}"][::given.every]
    if given.list:
        print("\n".join(f"{f.kind}: {f.name}" for f in faults))
        return 0

    began, verdicts = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        root = Path(folder)
        shutil.copytree(ROOT / "cuda", root / "cuda")
        shutil.copytree(ROOT / "tests/simt", root / "tests/simt")
        for file in {f.file for f in every_fault}:
            source = root / "cuda" / file
            source.write_text(switched(source.read_text(), [f for f in every_fault if f.file == file]))
        tests = tests_of(given.build, root, len(every_fault))
        sanitized = tests_of(given.sanitized, root, len(every_fault)) if given.sanitized else []
        running = {pool.submit(plant, f, tests + sanitized * (f.kind == "bound")): f for f in faults}
        for done in concurrent.futures.as_completed(running):
            fault = running[done]
            try:
                verdicts[fault.number] = done.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            print(f"{len(verdicts)}/{len(faults)} {fault.kind}: {fault.name}\n    {verdicts[fault.number] or 'survives'}", flush=True)

    survivors = [f for f in faults if verdicts[f.number] in ("", "no test comes by it")]
    # A bound that only AddressSanitizer misses has no reason to be harmless; one that no test comes by is not missed by it either.
    unexplained = [f for f in survivors if f.name not in reasons and (sanitized or f.kind != "bound" or verdicts[f.number])]
    noticed = len(faults) - len(survivors)
    print(f"{len(faults)} faults planted, {noticed} noticed ({100 * noticed / max(1, len(faults)):.1f} %), {len(survivors)} survive, {(time.monotonic() - began) / 60:.1f} min")
    for fault in unexplained:
        print(f"survives without a reason in survivors.txt: {fault.name}")
    # What --list has no longer, or what is noticed by now, needs no reason.
    stale = sorted(set(reasons) - {f.name for f in (survivors if given.every == 1 and not given.only and sanitized else every_fault)})
    for name in stale:
        print(f"survivors.txt excuses what is no survivor: {name}")
    if given.json:
        given.json.write_text(json.dumps({"planted": len(faults), "noticed": noticed, "faults": [
            {"kind": f.kind, "fault": f.name, "noticed_by": verdicts[f.number] if f not in survivors else None, "harmless": reasons.get(f.name)} for f in faults]}, indent=1) + "\n")
    enough = given.every > 1 or noticed >= 0.9 * len(faults)
    return 0 if faults and enough and not unexplained and not stale else 1


if __name__ == "__main__":
    sys.exit(main())
