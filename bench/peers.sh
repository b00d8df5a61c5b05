#!/usr/bin/env bash
# Ours beside PyTorch and ONNX Runtime, taking turns; NAME is scores (the default), leverage, attention, select, compact, decode or all; its options follow.
#   bash bench/peers.sh [NAME] [--help]
set -euo pipefail
cd "$(dirname "$0")/.."
exec dotnet run -c Release --project bench/Compactor.Bench -- peers "${@:-scores}"
