"""Proves that the kernels' tests notice faults: takes away, one at a time, each barrier, wait and bound check of cuda/, and runs the tests of the kernels that contain it;
those of a bound that is not missed are run under AddressSanitizer too, where there is a build with it.

    cmake -S tests/simt -B build/simt && cmake --build build/simt --target simt && python3 tests/simt/mutate.py build/simt [--sanitized build/simt-sanitized] [--only TEXT | --every N] [--list] [--jobs N]

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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNTOUCHED = {"ptx.cuh", "ptx_sm90a.cuh", "types.cuh"}
SECONDS = 300   # a test slower than this hangs; unmutated ones take a few

# What is taken away as it stands, and what for.
STATEMENTS = [
    ("barrier", re.compile(r"__syncthreads\(\);|__syncwarp\([^;]*\);|(?<!void )named_barrier\([^;{]*\);"), lambda m: ";"),
    ("wait", re.compile(r"cp_async_wait<[^;]*>\(\);"), lambda m: ";"),
    ("wait", re.compile(r"cp_async_wait<([^;]*)>\(\);"), lambda m: f"cp_async_wait<({m[1]}) + 1>();"),
    ("wait", re.compile(r"(?<!void )\bwait\([^;{]*\);|wgmma_wait(_but<\d>)?\([^;{]*\);"), lambda m: ";"),
    ("commit", re.compile(r"(?<!void )(cp_async|wgmma)_commit\(\);"), lambda m: ";"),
    ("fence", re.compile(r"(?<!void )(fence_async_proxy|wgmma_fence)\(\);"), lambda m: ";"),
    ("order", re.compile(r"atomic_add_acq_rel\("), lambda m: "atomic_add_global("),
]
RELATION = re.compile(r"[\w)\]] (<|<=|>|>=) [\w(\-]")


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
        if "constexpr" not in code[code.rfind("\n", 0, m.start()):m.start()]:
            start = m.start() + len(m[1]) - len(m[1].lstrip(" ("))
            if m[1].count("(") == m[1].count(")"):
                yield "bound", m.start(1) + len(m[1]) - len(m[1].lstrip()), m.end(1), " true" if m[2] == "<" else " false"


def identity(file, text, start, end, replacement):
    """What survivors.txt calls a fault: file, the line it is in and how often that line came before, what becomes of it."""
    first = text.rfind("\n", 0, start) + 1
    line = text[first:text.find("\n", end)].split("//")[0].strip()
    before = text[:first].count(line)
    return f"{file}: {' '.join(line.split())}{f' ({before + 1})' if before else ''} => {'removed' if replacement == ';' else replacement.strip()}"


def includes(file, folder):
    found, open_ = set(), [file]
    while open_:
        name = open_.pop()
        if name not in found and (folder / name).exists():
            found.add(name)
            open_ += re.findall(r'#include "(?:\.\./)*(?:cuda/)?([\w.]+)"', (folder / name).read_text())
    return found


def tests_of(build):
    """The kernels' tests of a build folder."""
    library = (build / "libsimt.so").resolve(strict=True)
    return [Test(c, library) for c in json.loads((build / "compile_commands.json").read_text()) if "/simt/kernels/" in c["file"]]


class Test:
    """A variant of a kernel's test, as the build compiles it."""

    def __init__(self, entry, library):
        self.source, self.library = Path(entry["file"]), library
        self.arguments = shlex.split(entry["command"])
        self.name = Path(self.arguments[self.arguments.index("-o") + 1]).parts[-3].removesuffix(".dir")
        includes_of_test = re.findall(r'#include "([\w./]+)"', self.source.read_text())
        for local in list(includes_of_test):
            if (self.source.parent / local).exists():
                includes_of_test += re.findall(r'#include "([\w./]+)"', (self.source.parent / local).read_text())
        self.files = set().union(*(includes(Path(i).name, ROOT / "cuda") for i in includes_of_test))

    def fails(self, root, folder):
        """'' when it passes, 'invalid' when it does not compile, otherwise what it said."""
        program = folder / self.name
        arguments = [a.replace(str(ROOT / "cuda"), str(root / "cuda")).replace(str(ROOT / "tests"), str(root / "tests")) for a in self.arguments]
        arguments[arguments.index("-o") + 1] = f"{program}.o"
        if subprocess.run([*arguments, "-w"], capture_output=True, cwd=folder).returncode != 0:
            return "invalid"
        sanitizers = [a for a in arguments if a.startswith("-fsanitize=") and a != "-fsanitize=thread"]
        subprocess.run(["g++", *sanitizers, f"{program}.o", str(self.library), f"-Wl,-rpath,{self.library.parent}", "-o", str(program)], check=True, capture_output=True)
        try:
            done = subprocess.run([program], capture_output=True, text=True, errors="replace", timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return "does not end"
        return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["crashed"])[0]


def plant(tests, file, start, end, replacement):
    """Plants a fault and runs tests until one fails."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        shutil.copytree(ROOT / "cuda", root / "cuda")
        shutil.copytree(ROOT / "tests/simt", root / "tests/simt")
        text = (root / "cuda" / file).read_text()
        (root / "cuda" / file).write_text(text[:start] + replacement + text[end:])
        verdict = "untested"
        for test in tests:
            said = test.fails(root, Path(folder))
            if said not in ("", "invalid"):
                return f"{test.name}: {said}"
            verdict = said if verdict == "untested" or said == "" else verdict
        return verdict


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("build", type=Path, help="build folder of tests/simt")
    options.add_argument("--sanitized", type=Path, help="build folder of tests/simt with COMPACTOR_SANITIZE")
    options.add_argument("--only", default="", help="faults whose line of --list contains this text")
    options.add_argument("--every", type=int, default=1, help="only each N-th fault; then it is enough that survivors have their reason")
    options.add_argument("--list", action="store_true", help="print the faults and plant none")
    options.add_argument("--jobs", type=int, default=os.cpu_count())
    given = options.parse_args()

    tests, sanitized = tests_of(given.build), tests_of(given.sanitized) if given.sanitized else []
    reasons = dict(line.split(" | ", 1) for line in (ROOT / "tests/simt/survivors.txt").read_text().splitlines() if " | " in line)

    faults = []
    for path in sorted([*(ROOT / "cuda").glob("*.cu"), *(ROOT / "cuda").glob("*.cuh")]):
        if path.name in UNTOUCHED:
            continue
        text = path.read_text()
        for kind, start, end, replacement in mutations(text):
            name = identity(path.name, text, start, end, replacement)
            if given.only in f"{kind}: {name}":
                faults.append((kind, name, path.name, start, end, replacement))
    faults = faults[::given.every]
    if given.list:
        print("\n".join(f"{kind}: {name}" for kind, name, *_ in faults))
        return 0

    bounds = {name for kind, name, *_ in faults if kind == "bound"}
    killed, survivors, invalid = 0, [], 0
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(plant, [t for t in tests + sanitized * (kind == "bound") if file in t.files], file, start, end, replacement): (kind, name) for kind, name, file, start, end, replacement in faults}
        for done in concurrent.futures.as_completed(running):
            kind, name = running[done]
            verdict = done.result()
            if verdict == "invalid":
                invalid += 1
            elif verdict in ("", "untested"):
                survivors.append(name)
            else:
                killed += 1
            print(f"{kind}: {name}\n    {verdict or 'survives'}", flush=True)

    planted = killed + len(survivors)
    # A bound that only AddressSanitizer misses has no reason to be harmless.
    unexplained = sorted({s for s in survivors if s not in reasons and (sanitized or s not in bounds)})
    print(f"{planted} faults planted, {killed} noticed ({100 * killed / max(1, planted):.1f} %), {len(survivors)} survive, {invalid} do not compile")
    for name in unexplained:
        print(f"survives without a reason in survivors.txt: {name}")
    enough = given.every > 1 or killed >= 0.9 * planted
    return 0 if planted > 0 and enough and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main())
