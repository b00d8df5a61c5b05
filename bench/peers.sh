#!/usr/bin/env bash
# Ours beside PyTorch and ONNX Runtime, taking turns; NAME is scores (the default), leverage, attention, select, compact, decode or all; its options follow.
#   bash bench/peers.sh [NAME] [--help]
set -euo pipefail
[[ ${1:-} == -?* && $1 != --help ]] && set -- scores "$@"
exec dotnet run -c Release --project "$(dirname "$0")/Compactor.Bench" -- peers "${@:-scores}"
