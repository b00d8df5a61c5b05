#!/usr/bin/env bash
# Scores of one layer, ours against PyTorch's, in alternating pairs: the median ratio is the last line.
set -euo pipefail
cd "$(dirname "$0")/.."
exec dotnet run -c Release --project bench/Compactor.Bench -- peers "$@"
