#!/usr/bin/env bash
# Ours against PyTorch in alternating pairs; the median ratio is the last line. `scores` (the default) or `decode`, then their options.
set -euo pipefail
cd "$(dirname "$0")/.."
exec dotnet run -c Release --project bench/Compactor.Bench -- "${@:-scores}"
