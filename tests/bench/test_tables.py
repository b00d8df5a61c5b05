"""
bench/tables: the documents hold what was measured; a figure that is changed by hand is found; what cannot be made is refused.
  python3 -m unittest discover -s tests/bench
"""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def host(full_cache):
    """A result of one context: {"full cache": ...} with the tokens/s given, and a retention."""
    ways = {"full cache": {"held_blocks": 40, "peak_blocks": 40, "cache_bytes": 2_000_000, "first_token_milliseconds": [100.0, 200.0, 400.0], "tokens_per_second": full_cache},
            "retention 0.5": {"held_blocks": 20, "peak_blocks": 21, "cache_bytes": 1_000_000, "median_added_milliseconds": 20.0, "first_token_milliseconds": [110.0, 230.0, 420.0], "tokens_per_second": [90.0, 80.0, 100.0]}}
    return {"benchmark": "end to end on the host engine: m", "cpu": "CPU", "load_average_before": 0.25, "threads": 2, "date": "2026-01-01", "repeats": 3, "dimensions": {"block_size": 128, "decoded_tokens": 64}, "contexts": {"512 tokens": ways}}


def comparison(stage, ours, peer, over=1.0, **vectors):
    return {"benchmark": f"{stage}, float32, N 8", "peer": {"name": "PyTorch", "version": "9", "threads": 2, "variant": "way", **vectors}, "peer_over_tuned": over,
            "ours_seconds": ours, "peer_seconds": peer, "ratios": [p / o if o else 1.0 for o, p in zip(ours, peer)]}


def stages(*comparisons):
    return {"benchmark": "CPU stages beside peers", "date": "2026-01-01", "cpu": "CPU", "cores": 2, "threads": 2, "simd_bits": 256, "comparisons": list(comparisons)}


class Tables(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name
        shutil.copytree(os.path.join(ROOT, "bench", "results"), os.path.join(self.root, "bench", "results"))
        for path in ("README.md", "bench/README.md", "bench/tables"):
            shutil.copy(os.path.join(ROOT, path), os.path.join(self.root, path))

    def run_in(self, root, *arguments):
        done = subprocess.run([sys.executable, os.path.join(root, "bench", "tables"), *arguments], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    def text(self, path="README.md"):
        with open(os.path.join(self.root, path), encoding="utf-8") as file:
            return file.read()

    def replace(self, old, new, path="README.md"):
        text = self.text(path)
        self.assertIn(old, text)
        with open(os.path.join(self.root, path), "w", encoding="utf-8") as file:
            file.write(text.replace(old, new, 1))

    def result(self, name, document):
        path = os.path.join("bench", "results", name)
        with open(os.path.join(self.root, path), "w", encoding="utf-8") as file:
            file.write(document if isinstance(document, str) else json.dumps(document))
        return path

    def test_the_documents_of_the_repository_are_up_to_date(self):
        self.assertEqual((0, "", ""), self.run_in(ROOT, "--check"))
        for path, least in (("README.md", 6), ("bench/README.md", 3)):
            self.assertGreaterEqual(self.text(path).count("\n<!-- table "), least)

    def test_a_figure_changed_by_hand_is_found_and_put_right(self):
        whole = self.text()
        self.replace("| whole layer, paper, r 0.5 | 109 | 346 | 1094 |", "| whole layer, paper, r 0.5 | 111 | 355 | 999 |")
        self.assertEqual((1, "", "bench/tables: README.md differs from what was measured; run bench/tables --write\n"), self.run_in(self.root, "--check"))
        self.assertEqual((0, "README.md written\n", ""), self.run_in(self.root, "--write"))
        self.assertEqual(whole, self.text())
        self.assertEqual((0, "", ""), self.run_in(self.root, "--write"))

    def test_a_new_measurement_changes_the_documents(self):
        path = max(glob.glob(os.path.join(self.root, "bench", "results", "*-startup.json")))
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        result[next(key for key in result if key.endswith("milliseconds") and isinstance(result[key], list))] = [500] * 5
        with open(path, "w", encoding="utf-8") as file:
            json.dump(result, file)
        self.assertEqual(1, self.run_in(self.root, "--check")[0])
        self.run_in(self.root, "--write")
        self.assertIn("ms | 500 (500 to 500) | 5 | ", self.text())

    def test_what_a_marker_says_is_refused_where_it_is_wrong_and_nothing_is_written(self):
        before = self.text("bench/README.md")
        begin = "<!-- table gpu bench/results/2026-11-27-gpu-h200.json qwen2.5-14b -->"
        for marker, said in ((begin.replace("table gpu", "table gpus"), "there is no table 'gpus'"), (begin.replace("h200", "h300"), "bench/results/2026-11-27-gpu-h300.json cannot be read"),
                             (begin.replace("qwen2.5-14b", "L9"), "holds no model L9; it holds L8, qwen2.5-14b"), ("<!-- table gpu -->", "is not <!-- table TABLE FILE... -->"),
                             (begin.replace("gpu-h200.json qwen2.5-14b", "gpu-h200.json"), "no table gpu can be made of"), (begin + "\n\n" + begin, "a table begins"), ("<!-- end -->\n" + begin, "ends no table"),
                             (begin.replace("table gpu", "table eval"), "no table eval can be made of"), (begin.replace("gpu-h200.json qwen2.5-14b", "gpu-h200.json").replace("table gpu", "table cpu"), "no samples that are known")):
            with self.subTest(marker):
                self.replace(begin, marker, "bench/README.md")
                self.replace("| 109 | 346 | 1094 |", "| 111 | 355 | 999 |")
                changed = self.text()
                for option in ("--check", "--write"):
                    status, output, error = self.run_in(self.root, option)
                    self.assertEqual((2, "", 1), (status, output, len(error.splitlines())), error)
                    self.assertIn("bench/README.md, line ", error)
                    self.assertIn(said, error)
                self.assertEqual(changed, self.text())
                self.replace("| 111 | 355 | 999 |", "| 109 | 346 | 1094 |")
                self.replace(marker, begin, "bench/README.md")
        self.assertEqual(before, self.text("bench/README.md"))

    def test_one_table_is_printed(self):
        status, output, _ = self.run_in(self.root, "eval", "bench/results/2026-11-26-retrieval-eval.json", "tova", "h2o")
        self.assertEqual(0, status)
        self.assertEqual(["| tova | 4.7 [3.2, 6.5] | 2.4 [1.1, 4.0] | 1.4 [0.4, 2.8] |", "| h2o | 29.2 [24.6, 33.8] | 12.0 [8.8, 15.5] | 5.7 [3.4, 8.4] |"], output.splitlines()[-2:])
        self.assertIn("holds no policy none", self.run_in(self.root, "eval", "bench/results/2026-11-26-retrieval-eval.json", "none")[2])
        for wrong in ([], ["--wrte"], ["gpu"], ["--write", "--check"]):
            self.assertEqual(2, self.run_in(self.root, *wrong)[0])

    def test_a_host_s_table_compares_with_the_full_cache(self):
        path = self.result("host.json", host([50.0, 60.0, 70.0]))
        status, output, _ = self.run_in(self.root, "host", path)
        self.assertEqual(0, status)
        self.assertEqual(["| 512 tokens | full cache | 200.0 (100.0 to 400.0) |  | 40 | 40 | 2.00 | 60 (50 to 70) | 1.00 |", "| 512 tokens | retention 0.5 | 230.0 (110.0 to 420.0) | 20.0 (10%) | 20 | 21 | 1.00 | 90 (80 to 100) | 1.50 |"], output.splitlines()[-2:])
        self.assertTrue(output.startswith("m on CPU, 2 threads, blocks of 128, 64 tokens decoded, load 0.25, 2026-01-01, median of 3 (least to most)\n"), output)

    def test_capacity_has_a_row_for_each_pool(self):
        path = os.path.join("bench", "results", "capacity.json")
        results = [{"model": "m", "memory_gigabytes": gigabytes, "block_size": 16, "retention": retention, "sequences": sequences, "whole_blocks_over_these": 1 / retention}
                   for gigabytes, retention, sequences in ((80, 1, 8), (80, 0.25, 30), (141, 1, 8), (141, 0.25, 31))]
        with open(os.path.join(self.root, path), "w", encoding="utf-8") as file:
            json.dump({"results": results}, file)
        self.assertEqual(["| model | memory | block | 100% | 25% |", "|---|--:|--:|--:|--:|", "| m | 80 GB | 16 | 8 | 30 (4.00x) |", "| m | 141 GB | 16 | 8 | 31 (4.00x) |"],
                         self.run_in(self.root, "capacity", path)[1].splitlines())

    def test_launch_cost_has_a_table_too(self):
        path = os.path.join("bench", "results", "launch.json")
        with open(os.path.join(self.root, path), "w", encoding="utf-8") as file:
            json.dump({"benchmark": "host time", "cpu": "a chip", "date": "2026-01-01", "commit": "abc1234", "presets": {"paper": {"launches": 9, "microseconds": [20.0, 21.0, 25.0]}}}, file)
        self.assertIn("| host time | paper, 9 launches, us | 21.0 (20.0 to 25.0) | 3 | a chip | 2026-01-01 | abc1234 |", self.run_in(self.root, "cpu", path)[1])

    def test_a_name_with_wildcards_is_the_newest_file(self):
        for date, ms in (("2099-01-02", 2.5), ("2099-01-01", 1.5)):
            with open(os.path.join(self.root, "bench", "results", f"{date}-anything.json"), "w", encoding="utf-8") as file:
                json.dump({"benchmark": "x", "cpu": "a chip", "date": date, "milliseconds": [ms] * 5}, file)
        self.assertIn("| x | ms | 2.50 (2.50 to 2.50) | 5 | a chip | 2099-01-02 |  |", self.run_in(self.root, "cpu", "bench/results/*-anything.json")[1])
        self.assertIn("*-nothing.json cannot be read", self.run_in(self.root, "cpu", "bench/results/*-nothing.json")[2])

    def test_a_stage_says_what_differs_and_what_was_disturbed(self):
        tens = [1 + i / 10 for i in range(10)]
        comparisons = [comparison("select", [1.0] * 10, [2 * x for x in tens], vectors="512 bits"), comparison("compact", [1.0] * 10, [x / 2.5 for x in tens]),
                       comparison("decode", [1.0] * 10, [x / 1.5 for x in tens], over=1.6), comparison("fuse", [1.0, *[2.0] * 9], [8.0] * 10)]
        path = self.result("peers.json", stages(*comparisons))
        # of ten values the second and the ninth: outside lies the median with probability 2 (1 + 10) / 1024
        self.assertEqual(["| select, N 8 | PyTorch 9 | way, 2 threads, 512-bit vectors | 2.90 [2.20, 3.60] | 2.90 | faster |", "| compact, N 8 | PyTorch 9 | way, 2 threads | 0.58 [0.44, 0.72] | 0.58 | slower |",
                          "| decode, N 8 | PyTorch 9 | way, 2 threads | 0.97 [0.73, 1.20] | 0.97 | no difference, disturbed |", "| fuse, N 8 | PyTorch 9 | way, 2 threads | 4.00 [4.00, 4.00] | 4.00 | faster, disturbed |"],
                         self.run_in(self.root, "stages", path)[1].splitlines()[-4:])

    def test_a_stage_of_few_rounds_has_no_interval_and_the_range_of_rounds_is_told(self):
        lines = self.run_in(self.root, "stages", self.result("few.json", stages(comparison("select", [1.0] * 3, [2.0] * 3), comparison("compact", [1.0] * 10, [2.0] * 10))))[1].splitlines()
        self.assertIn("2026-01-01, 3 to 10 rounds: ", lines[0])
        self.assertEqual(["| select, N 8 | PyTorch 9 | way, 2 threads | 2.00 [too few rounds] | 2.00 | too few rounds |", "| compact, N 8 | PyTorch 9 | way, 2 threads | 2.00 [2.00, 2.00] | 2.00 | faster |"], lines[-2:])
        self.assertIn("2026-01-01, 3 rounds: ", self.run_in(self.root, "stages", self.result("few.json", stages(comparison("select", [1.0] * 3, [2.0] * 3))))[1])

    def test_numbers_of_which_nothing_can_be_made_are_refused(self):
        ratios = stages(comparison("select", [1.0] * 3, [2.0] * 3))
        ratios["comparisons"][0]["ratios"][1] = float("nan")
        for name, document, said in (("host", host([0, 0, 0]), "ZeroDivisionError"), ("stages", stages(comparison("select", [0.0] * 10, [2.0] * 10)), "ZeroDivisionError"), ("stages", ratios, "holds NaN"),
                                     ("stages", json.dumps(stages(comparison("select", [1.0] * 3, [2.0] * 3))).replace("2.0", "2e999"), "holds 2e999"), ("host", json.dumps(host([1, 1, 10 ** 400])), "OverflowError"),
                                     ("host", "[" * 100000, "RecursionError")):
            with self.subTest(name=name, said=said):
                status, output, error = self.run_in(self.root, name, self.result("wrong.json", document))
                self.assertEqual((2, "", 1), (status, output, len(error.splitlines())), error)
                self.assertIn("wrong.json", error)
                self.assertIn(said, error)

    def test_a_document_that_cannot_be_read_is_refused(self):
        path = os.path.join(self.root, "other.md")
        with open(path, "wb") as file:
            file.write(b"one\ntwo \xff\n")
        for said in ("other.md, line 2: is not UTF-8", "other.md cannot be read: No such file"):
            for option in ("--check", "--write"):
                status, output, error = self.run_in(self.root, option)
                self.assertEqual((2, "", 1), (status, output, len(error.splitlines())), error)
                self.assertIn(said, error)
            os.remove(path)
            os.symlink("nowhere.md", path)

    def test_a_marker_that_is_not_exact_is_refused(self):
        for marker in ("<!-- Table", " <!--table", "x <!-- table cpu FILE -->", "<!--  table cpu FILE -->", "<!-- table cpu FILE --> ", "<!--\tTABLE"):
            with self.subTest(marker), open(os.path.join(self.root, "other.md"), "w", encoding="utf-8") as file:
                file.write(f"one\n{marker}\n")
                file.flush()
                status, _, error = self.run_in(self.root, "--check")
                self.assertEqual(2, status)
                self.assertIn(f"other.md, line 2: '{marker}' is not <!-- table TABLE FILE... -->", error)

    def test_a_peer_s_row_has_the_floor_where_there_is_one(self):
        output = self.run_in(self.root, "peers", "bench/results/2026-11-27-gpu-peers-h200.json", "L8", "4096")[1]
        self.assertIn("| operation | ours, us | floor, us (share) | peer | peer, us | ratio |\n|---|--:|--:|---|--:|--:|\n", output)
        with open(os.path.join(self.root, "bench", "results", "2026-11-27-gpu-peers-h200.json"), encoding="utf-8") as file:
            operations = [o for o in json.load(file)["operations"] if o["model"] == "L8" and o["tokens"] == 4096]
        first, floorless = (next(o for o in operations if bool(o["floor_us"]) == has) for has in (True, False))
        self.assertIn(f"| {first['name']} | {first['ours_us']['median']:.0f} | {first['floor_us']:.0f} ({first['share_of_floor']:.0%}) | ", output)
        self.assertIn(f"| {floorless['name']} | {floorless['ours_us']['median']:.0f} |  | ", output)

    def test_a_layer_s_rows_of_host_time_are_there_where_they_were_measured(self):
        path = os.path.join(self.root, "bench", "results", "2026-11-27-gpu-h200.json")
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        layer = next(o for o in document["benchmark"]["operations"] if o["name"].startswith("whole layer") and o["model"] == "L8" and o["tokens"] == 131072)
        queued, replayed = (f"whole layer, paper, r 0.5: host time to {what}" for what in ("queue its launches", "launch a graph of it"))
        lines = self.run_in(self.root, "gpu", path, "L8")[1].splitlines()
        self.assertTrue(any(line.startswith(f"| {queued} |") and line.endswith(f"| {layer['queueing_microseconds']:.0f} |") for line in lines), lines)
        self.assertTrue(any(line.startswith(f"| {replayed} |") and line.endswith(f"| {layer['replaying_microseconds']:.0f} (of 1) |") for line in lines), lines)
        for operation in document["benchmark"]["operations"]:
            del operation["replaying_microseconds"]
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document, file)
        output = self.run_in(self.root, "gpu", path, "L8")[1]
        self.assertIn(queued, output)
        self.assertNotIn(replayed, output)

    def test_peers_of_a_layer_that_was_not_measured_are_refused(self):
        status, _, error = self.run_in(self.root, "peers", "bench/results/2026-11-27-gpu-peers-h200.json", "L8", "8192")
        self.assertEqual(2, status)
        self.assertIn("holds no L8 at N 8192; it holds L8 at N 131072, ", error)

    def test_a_speed_on_record_says_what_was_measured_on_what_and_with_what(self):
        found = 0
        for path in glob.glob(os.path.join(ROOT, "bench", "results", "*.json")):
            with open(path, encoding="utf-8") as file:
                result = json.load(file)
            if not isinstance(result, dict) or "benchmark" not in result or "planted" in result:
                continue   # what a model answers, what kernels compile to, which faults are noticed: the same on every machine; BenchmarkDotNet's own files
            found += 1
            if isinstance(result["benchmark"], dict):   # a payload's
                result = {"commit": result["version"], **result["benchmark"]}
            with self.subTest(os.path.basename(path)):
                device = ("device", "driver", "compiler" if "compiler" in result else "nvrtc") if "driver" in result else ("cpu", "cores", "dotnet")
                for fact in ("date", "commit", *device):
                    self.assertTrue(result.get(fact), fact)
                self.assertTrue(os.path.basename(path).startswith(result["date"][:10]), result["date"])
                self.assertNotIn("dirty", result["commit"])
        self.assertGreaterEqual(found, 10)


if __name__ == "__main__":
    unittest.main()
