"""
The workflows: what they call exists, and they keep the rules of their machines; the scripts of .ci that need no GPU are run.
  python3 -m unittest discover -s tests/bench        needs numpy, PyYAML and jq
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest

import yaml

from test_compare import ROOT, gpu, peers

FOLDER = os.path.join(ROOT, ".github", "workflows")
SAME_REPOSITORY = "github.event.pull_request.head.repo.full_name == github.repository"


def workflows():
    for path in sorted(glob.glob(os.path.join(FOLDER, "*.yml"))):
        with open(path, encoding="utf-8") as file:
            yield os.path.basename(path), yaml.safe_load(file)


def jobs():
    for name, workflow in workflows():
        for job in workflow["jobs"]:
            yield name, job, workflow["jobs"][job]


class Workflows(unittest.TestCase):
    def test_there_are_two_and_each_keeps_to_the_rules(self):
        self.assertEqual(["ci.yml", "gpu.yml"], [name for name, _ in workflows()])
        for name, workflow in workflows():
            with self.subTest(name):
                self.assertEqual({"contents": "read"}, workflow["permissions"])
                self.assertIn("cancel-in-progress", workflow["concurrency"])
                self.assertTrue(workflow["concurrency"]["group"].startswith(name[:-4]))
        for name, job, content in jobs():
            with self.subTest(f"{name}, {job}"):
                self.assertLessEqual(content["timeout-minutes"], 180)
                self.assertLessEqual(set(content.get("permissions", {}).values()), {"read"})
                for step in content["steps"]:
                    if "uses" in step:
                        self.assertRegex(step["uses"], r"^actions/[a-z-]+@v[1-9]\d*$")
                        if step["uses"].startswith("actions/checkout@"):
                            self.assertIs(False, step["with"]["persist-credentials"])
                    else:
                        self.assertLessEqual(len(step["run"].strip().splitlines()), 4, "longer steps go into scripts that can be run by hand")

    def test_every_script_and_path_that_is_called_exists(self):
        called = 0
        for name, job, content in jobs():
            for step in content["steps"]:
                text = step.get("run", "") + " " + str(step.get("with", {}).get("key", "")) + " " + str(step.get("with", {}).get("global-json-file", ""))
                for path in re.findall(r"(?<![\w./])(?:\.ci|tests|bench|interop|src|cuda)/[\w./-]+|global\.json|Directory\.Packages\.props", text):
                    called += 1
                    self.assertTrue(os.path.exists(os.path.join(ROOT, path)), f"{name}, {job}: {path}")
        self.assertGreaterEqual(called, 8)

    def test_scripts_name_only_what_exists(self):
        for script in sorted(glob.glob(os.path.join(ROOT, ".ci", "*"))):
            with open(script, encoding="utf-8") as file:
                text = file.read()
            self.assertTrue(os.access(script, os.X_OK) or script.endswith("run"), script)
            if text.startswith("#!/usr/bin/env bash"):
                subprocess.run(["bash", "-n", script], check=True)
            for path in re.findall(r"(?<![\w./*}\"])(?:\.ci|tests|bench|interop)/[\w.-]+[\w]", text):
                self.assertTrue(os.path.exists(os.path.join(ROOT, path)), f"{script}: {path}")

    def test_no_code_of_a_fork_reaches_the_machine_with_the_gpu(self):
        found = 0
        for name, job, content in jobs():
            if "self-hosted" not in content["runs-on"]:
                continue
            found += 1
            self.assertEqual({"self-hosted", "linux", "x64", "gpu"}, set(content["runs-on"]))
            self.assertIn(SAME_REPOSITORY, content["if"])
            self.assertIn("github.event.label.name == 'gpu'", content["if"])
            self.assertNotIn("permissions", content)
            self.assertNotRegex(json.dumps(content["steps"]), r"secrets\.|github\.token|dotnet")
        self.assertEqual(1, found)
        for name, workflow in workflows():
            self.assertNotIn("pull_request_target", workflow[True], "which runs a fork's changes with this repository's rights")  # YAML reads `on` as true

    def test_what_is_downloaded_was_uploaded(self):
        of = {"upload": set(), "download": set()}
        for _, _, content in jobs():
            for step in content["steps"]:
                if match := re.match(r"actions/(upload|download)-artifact@", step.get("uses", "")):
                    of[match[1]].add(step["with"]["name"])
        self.assertEqual({"gpu-payload", "gpu-baseline"}, of["download"])
        self.assertLessEqual(of["download"], of["upload"])
        with open(os.path.join(ROOT, ".ci", "gpu-baseline"), encoding="utf-8") as file:
            self.assertIn(re.search(r"--name (\S+)", file.read())[1], of["upload"])


class Scripts(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, *parts, text=None, executable=False):
        path = os.path.join(self.folder, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if text is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            if executable:
                os.chmod(path, 0o755)
        return path

    def results(self, folder, document, seeds, name="compactor-gpu.json", **options):
        for i, seed in enumerate(seeds):
            self.path(folder, f"run-{i + 1}", name, text=json.dumps(document(seed, **options)))
        return os.path.join(self.folder, folder)

    def run_script(self, script, *arguments, **variables):
        return subprocess.run([*script, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}, check=False)

    def compare(self, *arguments):
        summary = self.path("summary.md", text="")
        done = self.run_script([sys.executable, os.path.join(ROOT, ".ci", "gpu-compare")], *arguments, GITHUB_STEP_SUMMARY=summary)
        with open(summary, encoding="utf-8") as file:
            self.assertEqual(done.stdout, file.read())
        return done.returncode, done.stdout + done.stderr

    def test_the_gate_takes_the_last_good_results_of_main(self):
        same, slow = self.results("same", gpu, [4, 5, 6]), self.results("slow", gpu, [4, 5, 6], slower="compact, r 0.5", by=1.3)
        before = self.results("before", gpu, [1, 2, 3])
        status, output = self.compare(same, "--baseline", before)
        self.assertEqual(0, status, output)
        self.assertIn("no regression: 0 of 13 measures slower", output)
        status, output = self.compare(slow, "--baseline", before)
        self.assertEqual(1, status, output)
        self.assertIn("REGRESSION: 4 of 13 measures slower", output)
        with open(os.path.join(slow, "comparison-compactor-gpu.json"), encoding="utf-8") as file:
            self.assertTrue(json.load(file)["failed"])
        self.results("before", peers, [1, 2, 3], "peers.json")
        status, output = self.compare(same, "--baseline", before)
        self.assertEqual(1, status, output)
        self.assertIn("REGRESSION: not measured here, and ", output)
        self.results("same", peers, [4, 5, 6], "peers.json", slower=1.5)
        status, output = self.compare(same, "--baseline", before)
        self.assertEqual(1, status, output)
        self.assertIn("REGRESSION: 5 of 5 measures slower", output)

    def test_without_them_the_gate_takes_the_newest_committed_file_of_the_device(self):
        measured = self.results("measured", gpu, [4, 5, 6], slower="fuse and select", by=1.3)
        self.path("before", "source", text="no run yet")
        self.path("results", "2026-01-01-gpu.json", text=json.dumps(gpu(1, slower="fuse and select", by=1.3)))
        committed = self.path("results", "2026-01-02-gpu.json", text=json.dumps(gpu(2)))
        other = gpu(3)
        other["benchmark"]["device"] = "NVIDIA H100"
        self.path("results", "2026-01-03-gpu.json", text=json.dumps(other))
        status, output = self.compare(measured, "--baseline", self.path("before"), "--results", self.path("results"))
        self.assertEqual(1, status, output)
        self.assertIn(f"Before: {committed}\n", output)

    def test_with_nothing_to_compare_with_the_gate_says_so(self):
        measured = self.results("measured", gpu, [4])
        without = gpu(1)
        for operation in without["benchmark"]["operations"]:
            del operation["samples_microseconds"]
        self.path("results", "2026-01-01-gpu.json", text=json.dumps(without))
        status, output = self.compare(measured, "--results", self.path("results"))
        self.assertEqual(0, status, output)
        self.assertIn("Nothing to compare with", output)
        self.assertIn("2026-01-01-gpu.json (GPU operations) holds no samples", output)
        self.assertIn("Not measured here", output)  # the peers

    def test_results_that_cannot_be_read_are_no_success(self):
        self.assertEqual(2, self.compare(self.path("none"))[0])
        self.path("broken", "run-1", "compactor-gpu.json", text="{")
        status, output = self.compare(self.path("broken"))
        self.assertEqual(2, status, output)
        self.assertIn("JSONDecodeError", output)

    def test_measuring_runs_all_sections_once_and_the_benchmark_three_times(self):
        self.path("compactor-gpu", "run.sh", text='[ "$1" = --out ] && mkdir -p "$2" && echo "{}" >"$2/compactor-gpu.json" && shift 2 && echo "sections: $*"; exit "${FAIL:-0}"\n')
        payload, library = self.path("payload.tar.xz"), self.path("library.so", text="")
        subprocess.run(["tar", "cJf", payload, "-C", self.folder, "compactor-gpu"], check=True)
        python = self.path("python", text="#!/bin/sh\necho 'No module named torch' >&2; exit 1\n", executable=True)
        script, out = ["bash", os.path.join(ROOT, ".ci", "gpu-measure")], self.path("out", "old", text="")
        out = os.path.dirname(out)
        done = self.run_script(script, payload, library, out, PYTHON=python)
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("sections: doctor tests sanitizer benchmark\nsections: benchmark\nsections: benchmark\n", done.stdout)
        self.assertIn("the peers are not measured: " + python + " has no PyTorch with CUDA: No module named torch", done.stdout)
        self.assertEqual(["run-1", "run-2", "run-3"], sorted(os.listdir(out)))
        self.assertEqual(1, self.run_script(script, payload, library, out, PYTHON=python, FAIL="1").returncode)
        self.path("python", text="#!/bin/sh\n[ \"$1\" = -c ] || echo \"peers: $*\"\n", executable=True)
        done = self.run_script(script, payload, library, out, PYTHON=python)
        self.assertEqual(3, done.stdout.count(f"peers: bench/peers/gpu.py --library {library} --json {out}/run-"), done.stdout)
        self.path("python", text="#!/bin/sh\n[ \"$1\" = -c ] || exit 1\n", executable=True)
        done = self.run_script(script, payload, library, out, PYTHON=python)
        self.assertEqual(1, done.returncode)
        self.assertIn("bench/peers/gpu.py, run 2 did not hold", done.stderr)
        self.assertEqual(2, self.run_script(script, self.path("none"), library, out).returncode)
        self.assertEqual(2, self.run_script(script, payload).returncode)

    def test_the_baseline_says_where_it_comes_from_or_why_there_is_none(self):
        none, left, got = "no run of gpu.yml on main succeeded yet\n", "run 17 of gpu.yml on main has no artifact gpu-results left\n", "run 17 of gpu.yml on main\n"
        run, kept, expired = """echo '[{"databaseId": 17}]'""", """echo '{"artifacts": [{"expired": true}, {"expired": false}]}'""", """echo '{"artifacts": [{"expired": true}]}'"""
        for runs, artifacts, download, status, expected in (("echo '[]'", "exit 1", "exit 1", 0, none), (run, expired, "exit 1", 0, left), (run, kept, 'echo "{}" >"$7/got"', 0, got),
                                                            ("exit 1", kept, "true", 1, ""), (run, "exit 1", "exit 1", 1, ""), (run, kept, "exit 1", 1, "")):
            with self.subTest(runs=runs, artifacts=artifacts, download=download):
                self.path("bin", "gh", text=f'''#!/bin/bash
set -eo pipefail
query() {{ jq -r "${{@: -1}}"; }}
case "$1 $2" in
  "run list") ({runs}) | query "$@" ;;
  "api repos"*/17/artifacts*name=gpu-results) ({artifacts}) | query "$@" ;;
  "run download") {download} ;;
  *) exit 3 ;;
esac
''', executable=True)
                done = self.run_script(["bash", os.path.join(ROOT, ".ci", "gpu-baseline")], self.path("baseline"), PATH=self.path("bin") + os.pathsep + os.environ["PATH"])
                self.assertEqual((status, expected), (done.returncode, done.stdout), done.stderr)
        self.assertTrue(os.path.exists(self.path("baseline", "got")))


if __name__ == "__main__":
    unittest.main()
