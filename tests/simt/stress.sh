#!/usr/bin/env bash
# What is too long for every day: on the emulator 50 schedules of each test, all of them under AddressSanitizer and UBSan, and each planted fault (mutate.py), of which nine in ten must be noticed. All of them run; the exit code is 1 where one failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
status=0
cmake -S tests/simt -B build/simt && SIMT_SCHEDULES=50 ctest --test-dir build/simt --output-on-failure || status=1
cmake -S tests/simt -B build/simt-sanitized -DCOMPACTOR_SANITIZE=address,undefined &&
  ctest --test-dir build/simt-sanitized --output-on-failure || status=1
python3 tests/simt/mutate.py build/simt --sanitized build/simt-sanitized || status=1
exit "$status"
