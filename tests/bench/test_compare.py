"""
bench/compare on generated results, whose noise is log-normal with outliers and shifts between runs, and on results of this repository.
  python3 -m unittest discover -s tests/bench        needs numpy
"""
import contextlib
import copy
import glob
import io
import json
import math
import os
import sys
import tempfile
import unittest
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import numpy

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
RESULTS = os.path.join(ROOT, "bench", "results")
OPERATIONS = ["leverage, chunk 512", "attention scores, C 256", "fuse and select", "compact, r 0.5"]
FLOORLESS = "fuse and select"
LENGTHS = [4096, 32768, 131072]
TOGETHER = "all measures together"


def load():
    loader = SourceFileLoader("compare", os.path.join(ROOT, "bench", "compare"))
    sys.modules["compare"] = module = module_from_spec(spec_from_loader("compare", loader))  # dataclasses look their module up
    loader.exec_module(module)
    return module


sys.dont_write_bytecode = True
compare = load()


def samples(rng, median, repeats=15, within=0.01, between=0.0):
    """Repeats of one run: log-normal about the run's own median, one in twenty slowed down by another tenant."""
    times = median * numpy.exp(rng.normal(0, within, repeats) + rng.normal(0, between))
    return list(numpy.where(rng.random(repeats) < 0.05, times * (1 + rng.exponential(0.2, repeats)), times))


def gpu(seed, slower=None, by=1.0, machine=1.0, **noise):
    """The payload of tests/gpu. `slower` names operations that take `by` times as long; `machine` slows the device down, its floors too."""
    rng = numpy.random.default_rng(seed)
    operations = []
    for name in OPERATIONS:
        for tokens in LENGTHS:
            floor = None if name == FLOORLESS else machine * tokens / 1000
            median = machine * tokens / 300 * (by if slower in (name, "all") else 1)
            operations.append({"name": name, "model": "L8", "tokens": tokens, "floor_microseconds": floor, "samples_microseconds": samples(rng, median, **noise)})
    benchmark = {"benchmark": "GPU operations", "device": "NVIDIA H200, compute capability 9.0, driver CUDA 13.0", "driver": "580", "nvrtc": "13.0", "operations": operations, "not_measured": []}
    return {"version": "0", "sections": [], "benchmark": benchmark}


def peers(seed, slower=1.0, machine=1.0):
    rng = numpy.random.default_rng(seed)
    operations = []
    for name in OPERATIONS:
        ours, theirs = (numpy.array(samples(rng, median * machine, 9)) for median in (100 * slower, 800))
        rival = {"us": {"samples": list(theirs)}, "ratios": list(theirs / ours)}
        operations.append({"name": name, "model": "L8", "tokens": 4096, "floor_us": 50.0, "ours_us": {"samples": list(ours)}, "peers": {"PyTorch": rival}, "peers_failed": {}})
    return {"benchmark": "GPU operations beside peers", "device": "NVIDIA H200", "torch": "2.11", "peers": {"kvpress": "not there"}, "operations": operations}


def committed(name):
    with open(os.path.join(RESULTS, name), encoding="utf-8") as file:
        return json.load(file)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def file(self, name, document):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(document if isinstance(document, str) else json.dumps(document))
        return path

    def run_on(self, before, after, *options):
        """(exit status, standard output, standard error) of a comparison of documents, or of lists of them."""
        sides = [[self.file(f"{side}-{i}.json", document) for i, document in enumerate(documents if isinstance(documents, list) else [documents])]
                 for side, documents in (("before", before), ("after", after))]
        return self.run_with("--before", *sides[0], "--after", *sides[1], *options)

    def run_with(self, *arguments):
        output, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            try:
                status = compare.main(list(arguments))
            except SystemExit as exit:
                status = exit.code
        return status, output.getvalue(), error.getvalue()

    def assert_passes(self, outcome):
        self.assertEqual((0, ""), (outcome[0], outcome[2]), outcome[1])
        self.assertTrue(outcome[1].splitlines()[-1].startswith("no regression: 0 of "), outcome[1])

    def assert_slower(self, outcome, *names):
        self.assertEqual(1, outcome[0], outcome)
        last = outcome[1].splitlines()[-1]
        self.assertTrue(last.startswith(f"REGRESSION: {len(names)} of "), last)
        for name in names:
            self.assertIn(name, last)
            self.assertIn("**slower**", next(line for line in outcome[1].splitlines() if line.startswith(f"| {name} ")))

    def assert_refused(self, outcome, *words):
        self.assertEqual((2, ""), outcome[:2])
        self.assertEqual(1, len(outcome[2].splitlines()), outcome[2])
        for word in ("bench/compare: ", *words):
            self.assertIn(word, outcome[2])


class PlantedChanges(Case):
    def test_five_percent_over_one_percent_of_noise_is_found_in_one_run(self):
        names = [*(f"attention scores, C 256, L8, N {n:,}" for n in LENGTHS), TOGETHER]
        for seed in range(3):
            self.assert_slower(self.run_on(gpu(seed), gpu(seed + 100, "attention scores, C 256", 1.05)), *names)

    def test_five_percent_is_found_where_runs_shift(self):
        names = [*(f"fuse and select, L8, N {n:,}" for n in LENGTHS), TOGETHER]
        noise = {"within": 0.01, "between": 0.004}
        self.assert_slower(self.run_on([gpu(s, **noise) for s in range(5)], [gpu(s + 100, FLOORLESS, 1.05, **noise) for s in range(5)]), *names)

    def test_two_percent_under_ten_percent_of_noise_is_not_claimed(self):
        claimed = 0
        for seed in range(6):
            claimed += self.run_on(gpu(seed, within=0.1), gpu(seed + 100, "all", 1.02, within=0.1))[0]
        self.assertLessEqual(claimed, 1)

    def test_what_is_faster_is_no_failure_and_is_said(self):
        outcome = self.run_on(gpu(1), gpu(2, "compact, r 0.5", 0.9))
        self.assert_passes(outcome)
        self.assertEqual(3, sum(line.startswith("| compact") and line.endswith("| faster |") for line in outcome[1].splitlines()))
        self.assertIn("0 of 13 measures slower, 4 faster", outcome[1])  # all together the fourth

    def test_the_slowest_change_comes_first(self):
        rows = [line for line in self.run_on(gpu(1), gpu(2, "compact, r 0.5", 1.5))[1].splitlines() if line.startswith("| ")][1:]
        self.assertTrue(all(row.startswith("| compact, r 0.5") for row in rows[:3]), rows)
        changes = [float(row.split("|")[6].split()[0]) for row in rows]
        self.assertEqual(sorted(changes, reverse=True), changes)

    def test_a_slower_machine_slows_its_floors_and_its_peers_too(self):
        outcome = self.run_on(gpu(1), gpu(2, machine=1.2))
        self.assert_slower(outcome, *(f"fuse and select, L8, N {n:,}" for n in LENGTHS), TOGETHER)  # the former have no floor, and say so
        self.assertEqual(9, sum("| x floor |" in line for line in outcome[1].splitlines()))
        self.assert_passes(self.run_on(peers(1), peers(2, machine=1.2)))

    def test_a_ratio_to_the_peer_that_falls_is_a_regression(self):
        self.assert_slower(self.run_on(peers(1), peers(2, slower=1.1)), *(f"{name}, L8, N 4,096: PyTorch" for name in OPERATIONS), TOGETHER)
        self.assert_passes(self.run_on(peers(1), peers(2, slower=0.9)))

    def test_a_rate_that_falls_is_a_regression(self):
        before, after = committed("2026-11-26-cpu-paging.json"), committed("2026-11-26-cpu-paging.json")
        after["million_blocks_per_second"] = [rate / 1.3 for rate in after["million_blocks_per_second"]]
        self.assert_slower(self.run_on(before, after), "million_blocks_per_second", TOGETHER)
        self.assert_passes(self.run_on(after, before))

    def test_a_small_loss_everywhere_that_no_measure_shows_by_itself_is_found(self):
        def run(seed, by):
            rng = numpy.random.default_rng(seed)
            operations = [{"name": f"operation {i}", "model": "L8", "tokens": 1, "floor_us": 0, "samples_microseconds": samples(rng, 100 * by, within=0.02, between=0.01)} for i in range(30)]
            return {"benchmark": "GPU operations", "device": "NVIDIA H200", "operations": operations}

        for seed in range(5):
            status, output, _ = self.run_on([run(1000 * seed + i, 1) for i in range(3)], [run(1000 * seed + 500 + i, 1.05) for i in range(3)])
            self.assertEqual(1, status, output)
            self.assertIn("of 31 measures slower", output)
            self.assertRegex(output, r"\| all measures together \| geometric mean \| less \| 1 \| 1\.0\d* \| 1\.0\d\d \[.*\] \| \*\*slower\*\* \|")

    def test_all_measures_together_take_rates_the_other_way_round(self):
        before, after = ({"benchmark": "x", "milliseconds": samples(numpy.random.default_rng(seed), 100 * by), "tokens_per_second": samples(numpy.random.default_rng(seed + 10), 100 * by)} for seed, by in ((1, 1), (2, 1.5)))
        outcome = self.run_on(before, after)
        self.assert_slower(outcome, "milliseconds")
        self.assertIn("1 of 3 measures slower, 1 faster", outcome[1])
        del before["tokens_per_second"], after["tokens_per_second"]
        self.assertIn("1 of 1 measures slower", self.run_on(before, after)[1])


class ChanceAlone(Case):
    """The stated level: a comparison without a difference names one in 5% of all cases at most."""

    COMPARISONS, MEASURES = 300, 8

    def alarms(self, runs_before, runs_after, by=1.0, **noise):
        """How many comparisons have an interval that does not hold the change `by`."""
        alarms = 0
        for seed in range(self.COMPARISONS):
            rng = numpy.random.default_rng(seed)
            before, after = ([compare.Run("", "", {}, {}, {(str(i), "seconds"): samples(rng, median, **noise) for i in range(self.MEASURES)}) for _ in range(runs)]
                             for runs, median in ((runs_before, 100), (runs_after, 100 * by)))
            alarms += any(not c.low <= by <= c.high for c in compare.compare(before, after, seed, resamples=100))
        return alarms

    # 5% of 300 and two standard deviations of that count; a rate that is far below 5% would be of intervals far too wide
    MOST, LEAST = 300 * 0.05 + 2 * (300 * 0.05 * 0.95) ** 0.5, 5

    def assert_as_stated(self, alarms):
        self.assertTrue(self.LEAST <= alarms <= self.MOST, alarms)

    def test_one_run_on_each_side(self):
        self.assertLessEqual(self.alarms(1, 1), self.MOST)

    def test_several_runs_on_each_side(self):
        for repeats in (5, 11):
            self.assert_as_stated(self.alarms(3, 3, repeats=repeats, within=0.02, between=0.01))
        self.assert_as_stated(self.alarms(5, 5, repeats=5, within=0.02, between=0.01))
        self.assertLessEqual(self.alarms(2, 2, repeats=5, within=0.02, between=0.01), self.MOST)

    def test_three_runs_on_each_side_that_lie_far_apart(self):
        self.assert_as_stated(self.alarms(3, 3, within=0.002, between=0.02))

    def test_one_run_beside_three(self):
        self.assertLessEqual(self.alarms(1, 3, within=0.002, between=0.02), self.MOST)
        self.assertLessEqual(self.alarms(1, 3, repeats=5, within=0.02, between=0.01), self.MOST)

    def test_intervals_are_wider_where_more_is_compared(self):
        widths = []
        for count in (1, 12):
            sides = [gpu(seed) for seed in (1, 2)]
            for side in sides:
                del side["benchmark"]["operations"][count:]
            path = os.path.join(self.folder, "out.json")
            self.run_on(*sides, "--json", path)
            with open(path, encoding="utf-8") as file:
                change = next(c for c in json.load(file)["changes"] if c["name"] == f"{OPERATIONS[0]}, L8, N 4,096")
            widths.append(math.log(change["high"] / change["low"]))
        self.assertAlmostEqual(3.149 / 2.048, widths[1] / widths[0], delta=0.05)  # Student's t with 28 degrees of freedom, outside of which lie 5% / 13 and 5%

    def test_intervals_hold_a_real_change(self):
        self.assertLessEqual(self.alarms(1, 1, by=1.2, within=0.03), self.MOST)

    def test_one_run_says_too_little_of_runs_that_lie_apart_and_is_warned_of(self):
        self.assertGreater(self.alarms(1, 1, within=0.002, between=0.02), self.COMPARISONS / 2)
        self.assertIn("warning: one run on each side", self.run_on(gpu(1), gpu(2))[1])
        self.assertNotIn("warning:", self.run_on([gpu(1), gpu(2)], [gpu(3), gpu(4)])[1])

    def test_a_clock_that_ticks_coarsely_is_no_difference(self):
        before, after = gpu(1), gpu(1)
        for runs in (1, 3, 5):
            for times in (([32] * 14 + [33], [33] * 14 + [32]), ([53] * 11, [54] * 11)):
                for document, side in zip((before, after), times):
                    document["benchmark"]["operations"] = [{"name": FLOORLESS, "model": "L8", "tokens": 1, "floor_microseconds": None, "samples_microseconds": side}]
                self.assert_passes(self.run_on([before] * runs, [after] * runs))
            for document, time in ((before, 53), (after, 106)):
                document["benchmark"]["operations"][0]["samples_microseconds"] = [time] * 11
            self.assert_slower(self.run_on([before] * runs, [after] * runs), f"{FLOORLESS}, L8, N 1")

    def test_runs_that_lie_absurdly_far_apart_are_no_difference(self):
        documents = [{"benchmark": "x", "milliseconds": [median] * 5} for median in (1e-11, 1, 1e17)]
        self.assert_passes(self.run_on(documents[:1], documents[1:]))

    def test_students_t_is_that_of_published_tables(self):
        for outside, degrees, expected in ((0.05, 1, 12.706), (0.05, 2, 4.303), (0.05, 4, 2.776), (0.01, 10, 3.169), (0.001, 3, 12.924), (0.001, 28, 3.674), (0.05, 120, 1.980)):
            self.assertAlmostEqual(expected, compare.t_quantile(outside, degrees), delta=6e-4)


class CommittedResults(Case):
    def with_samples(self):
        names = []
        for path in sorted(glob.glob(os.path.join(RESULTS, "*.json"))):
            with contextlib.suppress(compare.Refusal):
                compare.read(path)
                names.append(os.path.basename(path))
        return names

    def test_each_beside_itself_passes(self):
        names = self.with_samples()
        self.assertGreaterEqual(len(names), 4, names)
        for name in names:
            path = os.path.join(RESULTS, name)
            self.assert_passes(self.run_with(path, path))

    def test_one_operation_that_takes_1_3_times_as_long_is_named(self):
        before, after = committed("2026-11-26-cpu-paging.json"), committed("2026-11-26-cpu-paging.json")
        after["export_milliseconds"] = [1.3 * time for time in after["export_milliseconds"]]
        self.assert_slower(self.run_on(before, after), "export_milliseconds", TOGETHER)

    def test_a_host_that_decodes_at_two_thirds_of_the_speed_is_named(self):
        before, after = committed("2026-11-26-cpu-host.json"), committed("2026-11-26-cpu-host.json")
        way = after["contexts"]["512 tokens"]["retention 0.25"]
        way["tokens_per_second"] = [speed / 1.5 for speed in way["tokens_per_second"]]
        outcome = self.run_on(before, after)
        self.assert_slower(outcome, "contexts, 512 tokens, retention 0.25, tokens_per_second")
        self.assertIn("| tokens/s | more |", outcome[1])

    def test_every_kind_of_list_is_read(self):
        host = {"ProcessorName": "AMD EPYC", "LogicalCoreCount": 2}
        documents = {
            "start-up": (committed("2026-11-27-startup.json"), lambda d: [d["demo_milliseconds"]], 1),
            "stages beside peers": (committed("2026-11-26-cpu-peers.json"), lambda d: [comparison["ratios"] for comparison in d["comparisons"]], -2),
            "time against tokens": (committed("2026-11-26-cpu-scaling.json"), lambda d: [length["seconds"] for stage in d["stages"].values() for length in stage["lengths"].values()], 2),
            "launch cost": (committed("2026-11-26-launch-cost.json"), lambda d: [d["presets"]["paper"]["microseconds"]], 1),
            "host, time": (committed("2026-11-26-cpu-host.json"), lambda d: [way["first_token_milliseconds"] for context in d["contexts"].values() for way in context.values()], 1),
            "host, speed": (committed("2026-11-26-cpu-host.json"), lambda d: [way["tokens_per_second"] for context in d["contexts"].values() for way in context.values()], -1),
            "BenchmarkDotNet": ({"HostEnvironmentInfo": host, "Benchmarks": [{"FullName": "Stages.Leverage", "Statistics": {"OriginalValues": samples(numpy.random.default_rng(2), 1e6)}}]},
                                lambda d: [d["Benchmarks"][0]["Statistics"]["OriginalValues"]], 1),
        }
        for name, (before, lists, sign) in documents.items():
            with self.subTest(name):
                after = copy.deepcopy(before)
                for values in lists(after):
                    values[:] = [value * 2.0 ** sign for value in values]
                self.assertEqual(1, self.run_on(before, after)[0])
                self.assert_passes(self.run_on(before, before))


class Refusals(Case):
    def test_files_that_hold_no_samples(self):
        path = os.path.join(RESULTS, "2026-11-26-gpu-h200.json")
        self.assert_refused(self.run_with(path, path), os.path.basename(path), "holds no samples", "run.sh benchmark")
        beside = peers(1)
        for operation in beside["operations"]:
            del operation["ours_us"]["samples"]
            for peer in operation["peers"].values():
                del peer["us"]["samples"], peer["ratios"]
        self.assert_refused(self.run_on(beside, beside), "holds no samples", "bench/peers/gpu.py")
        operations = committed("2026-11-26-gpu-h200.json")["benchmark"]
        self.assert_refused(self.run_on(operations, operations), "holds no samples", "Compactor.Gpu.Bench")

    def test_other_benchmarks(self):
        self.assert_refused(self.run_on(gpu(1), peers(1)), "before-0.json", "after-0.json", "'GPU operations beside peers'", "compare results of one benchmark")
        other = committed("2026-11-26-cpu-host.json")
        other["dimensions"]["decoded_tokens"] = 32
        self.assert_refused(self.run_on(committed("2026-11-26-cpu-host.json"), other), "decoded_tokens 32")

    def test_other_devices_unless_allowed(self):
        other = gpu(2)
        other["benchmark"]["device"] = "NVIDIA H100"
        self.assert_refused(self.run_on(gpu(1), other), "NVIDIA H200", "NVIDIA H100", "--other-device")
        status, output, _ = self.run_on(gpu(1), other, "--other-device")
        self.assertEqual(0, status)
        self.assertIn("differ in device: NVIDIA H200, compute capability 9.0 and NVIDIA H100", output)

    def test_another_driver_is_a_warning(self):
        other = gpu(2)
        other["benchmark"]["driver"] = "590"
        status, output, _ = self.run_on(gpu(1), other)
        self.assertEqual(0, status)
        self.assertIn("driver: 580 and 590", output)

    def test_broken_files(self):
        whole, path = self.file("whole.json", gpu(1)), os.path.join(self.folder, "out.json")
        for text, word in (('{"benchmark": ', "JSONDecodeError"), ("[1, 2]", "list where an object was expected"), ('{"a": 1}', "KeyError: 'benchmark'"), ('{"sections": [], "benchmark": null}', "holds no benchmark"),
                           ('{"sections": [], "benchmark": [1]}', "TypeError"), ('{"sections": [], "benchmark": "hey"}', "TypeError"), ('{"benchmark": 5, "operations": []}', "AttributeError"),
                           ('{"a": ' * 2000 + "1" + "}" * 2000, "RecursionError"), ('{"benchmark": "x", "milliseconds": [1, 2, 3, 4, 5], "milliseconds": [1]}', "milliseconds is there twice"),
                           ('{"benchmark": "x", "milliseconds": [1, 2, 3, 4, 1' + "0" * 400 + "]}", "holds the sample 10"),
                           ('{"benchmark": "x", "milliseconds": [1, 2, 3]}', "has 3 samples"), ('{"benchmark": "x", "milliseconds": [1, 2, 3, 0, 4, 5]}', "holds the sample 0"),
                           ('{"benchmark": "x", "milliseconds": [1, 2, NaN, 3, 4, 5]}', "holds the sample nan"), ('{"benchmark": "x", "milliseconds": ["1"]}', "holds the sample '1'")):
            with self.subTest(text[:60]):
                self.assert_refused(self.run_with(whole, self.file("broken.json", text), "--json", path), "broken.json", word)
        self.assert_refused(self.run_with(whole, os.path.join(self.folder, "none.json"), "--json", path), "none.json cannot be read")
        self.assertFalse(os.path.exists(path))
        self.assert_refused(self.run_with(whole, whole, "--json", os.path.join(self.folder, "none", "out.json")), "cannot be written")

    def test_floors_that_are_none(self):
        whole = self.file("whole.json", gpu(1))
        for floor in (0, -1.0, math.nan, math.inf, 10 ** 400, "1", True, []):
            document = gpu(2)
            document["benchmark"]["operations"][0]["floor_microseconds"] = floor
            with self.subTest(floor):
                self.assert_refused(self.run_with(whole, self.file("broken.json", document)), "broken.json", f"the floor of {OPERATIONS[0]}, L8, N 4,096 is {floor!r}")
        document["benchmark"]["operations"][0].update(floor_microseconds=1.0, samples_microseconds=[10 ** 400] * 5)
        self.assert_refused(self.run_with(whole, self.file("broken.json", document)), "broken.json", "OverflowError")

    def test_a_run_counts_once(self):
        once, other = (self.file(name, {"benchmark": "x", "milliseconds": [1, 2, 3, 4, 5]}) for name in ("once.json", "other.json"))
        linked = os.path.join(os.path.dirname(once), "linked.json")
        os.symlink(once, linked)
        for arguments in (("--before", once, once, "--after", other), ("--before", other, "--after", once, linked)):
            self.assert_refused(self.run_with(*arguments), "once.json", "are one file")

    def test_measures_that_are_there_twice(self):
        for document, entries in ((gpu(1), lambda d: d["benchmark"]["operations"]), (peers(1), lambda d: d["operations"]), (committed("2026-11-26-cpu-peers.json"), lambda d: d["comparisons"]),
                                  ({"HostEnvironmentInfo": {}, "Benchmarks": [{"FullName": "A.B", "Statistics": {"OriginalValues": [1, 2, 3, 4, 5]}}]}, lambda d: d["Benchmarks"]),
                                  ({"benchmark": "x", "a, x_milliseconds": [1, 2, 3, 4, 5], "a": {"x_milliseconds": [1, 2, 3, 4, 5]}}, lambda d: [None])):
            path, found = self.file("whole.json", document), entries(document)
            found.append(found[0])
            self.assert_refused(self.run_with(path, self.file("twice.json", document)), ".json", "is there twice")

    def test_wrong_usage(self):
        path = self.file("whole.json", gpu(1))
        for arguments in ([], [path], [path, path, path], ["--before", path], [path, "--before", path, "--after", path], [path, path, "--seed", "-1"], [path, path, "--percent", "5"]):
            with self.subTest(arguments):
                self.assertEqual(2, self.run_with(*arguments)[0])

    def test_a_measure_that_is_gone_is_a_failure_unless_only_common(self):
        less = gpu(2)
        gone = less["benchmark"]["operations"].pop(0)
        status, output, _ = self.run_on(gpu(1), less)
        self.assertEqual(1, status)
        self.assertIn(f"missing: {gone['name']}, L8, N 4,096 is not in ", output)
        self.assertTrue(output.splitlines()[-1].startswith("FAILED: 0 of 12 measures slower, 0 faster, 1 missing"), output)
        self.assertEqual(0, self.run_on(gpu(1), less, "--only-common")[0])
        status, output, _ = self.run_on(less, gpu(1))
        self.assertEqual(0, status)
        self.assertIn(f"added: {gone['name']}, L8, N 4,096 is only in ", output)
        none = gpu(2)
        for operation in none["benchmark"]["operations"]:
            operation["name"] += "!"
        self.assert_refused(self.run_on(gpu(1), none), "no measure in common")

    def test_the_same_seed_gives_the_same_comparison(self):
        texts = []
        for seed in ("7", "7", "8"):
            path = os.path.join(self.folder, "out.json")
            self.run_on(gpu(1), gpu(2, "compact, r 0.5", 1.1), "--seed", seed, "--json", path)
            with open(path, encoding="utf-8") as file:
                texts.append(json.load(file))
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0]["changes"], texts[2]["changes"])
        self.assertEqual((True, 10_000, 4), (texts[0]["failed"], texts[0]["resamples"], sum(change["verdict"] == "slower" for change in texts[0]["changes"])))


if __name__ == "__main__":
    unittest.main()
