#!/usr/bin/env bash
# The long checks of the kernels on the emulator: 50 schedules of each test, then all of them under AddressSanitizer and UBSan, then one planted fault at a time
# (mutate.py), of which nine in ten must be noticed. Hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
cmake -S tests/simt -B build/simt
SIMT_SCHEDULES=50 ctest --test-dir build/simt --output-on-failure
cmake -S tests/simt -B build/simt-sanitized -DCOMPACTOR_SANITIZE=address,undefined
ctest --test-dir build/simt-sanitized --output-on-failure
python3 tests/simt/mutate.py build/simt
