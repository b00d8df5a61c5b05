#!/usr/bin/env bash
# The long checks of the kernels, which take hours on two cores: agreement of every variant through the GPU backend, spills and compile time; on the emulator 50 schedules
# of each test, all of them under AddressSanitizer and UBSan, and one planted fault at a time (mutate.py), of which nine in ten must be noticed.
# All of them run; the exit code is 1 where one failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
status=0
bash tests/nvrtc.sh && dotnet build -c Release --nologo -v quiet tests/Compactor.Gpu.Tests || exit 1
tests/Compactor.Gpu.Tests/bin/Release/net10.0/Compactor.Gpu.Tests --progress off --no-ansi --explicit only \
  --filter-trait Length=hours --filter-not-method '*Write_the_table' || status=1
cmake -S tests/simt -B build/simt && SIMT_SCHEDULES=50 ctest --test-dir build/simt --output-on-failure || status=1
cmake -S tests/simt -B build/simt-sanitized -DCOMPACTOR_SANITIZE=address,undefined &&
  ctest --test-dir build/simt-sanitized --output-on-failure || status=1
python3 tests/simt/mutate.py build/simt || status=1
exit "$status"
