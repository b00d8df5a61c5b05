#!/usr/bin/env bash
# The long checks of the kernels: agreement of every variant through the GPU backend; on the emulator 50 schedules of each test, then all of them under AddressSanitizer and UBSan, then one planted fault at a time
# (mutate.py), of which nine in ten must be noticed. Hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
bash tests/nvrtc.sh
dotnet build -c Release --nologo -v quiet tests/Compactor.Gpu.Tests
tests/Compactor.Gpu.Tests/bin/Release/net10.0/Compactor.Gpu.Tests --progress off --no-ansi --explicit only --filter-trait Length=hours --filter-not-method '*Write_the_table'
cmake -S tests/simt -B build/simt
SIMT_SCHEDULES=50 ctest --test-dir build/simt --output-on-failure
cmake -S tests/simt -B build/simt-sanitized -DCOMPACTOR_SANITIZE=address,undefined
ctest --test-dir build/simt-sanitized --output-on-failure
python3 tests/simt/mutate.py build/simt
