#!/usr/bin/env bash
# Whole processes of the tool, start-up included, 11 times each after one untimed: `compactor demo` and `compactor doctor` as one native executable, and both on the runtime's JIT.
# Prints every run, in ms, and the medians.
#   bash bench/startup.sh [RESULT.json]
set -euo pipefail
[ $# -le 1 ] && [[ ${1:-} != -* ]] || { echo "usage: bash bench/startup.sh [RESULT.json]" >&2; exit 2; }
result=${1:+$(realpath -m -- "$1")}
[ -z "$result" ] || [ -e "$result" ] || made=$result   # taken away again where nothing comes of it
[ -z "$result" ] || { : >>"$result"; } 2>/dev/null || { echo "bench/startup.sh: $result cannot be written" >&2; exit 2; }
cd "$(dirname "$0")/.."
read -r load _ </proc/loadavg
commit=$(git describe --always --dirty --exclude="*" 2>/dev/null | sed 's/.*/"&"/' | grep . || echo null)   # before the result is written, which may be a tracked file
folder=$(mktemp -d)
trap 'rm -rf "$folder"; [ -z "${made:-}" ] || [ -s "$made" ] || rm -f "$made"' EXIT
dotnet publish src/Compactor.Cli -c Release -r linux-x64 -o "$folder/native" --nologo -v quiet
dotnet publish src/Compactor.Cli -c Release -o "$folder/jit" --nologo -v quiet
lists=()
# measure NAME KEY COMMAND...
measure() {
  local name=$1 key=$2 samples=() run start
  shift 2
  for run in $(seq 0 11); do
    start=$(date +%s%N)
    "$@" >/dev/null
    [ "$run" -eq 0 ] || samples+=($((($(date +%s%N) - start) / 1000000)))
  done
  echo "$name: ${samples[*]}; median of ${#samples[@]} runs: $(printf '%s\n' "${samples[@]}" | sort -n | sed -n 6p) ms wall"
  lists+=("  \"$key\": [$(IFS=,; echo "${samples[*]}")]")
}
measure demo demo_milliseconds "$folder/native/compactor" demo --report "$folder/report"
measure doctor doctor_milliseconds "$folder/native/compactor" doctor
measure 'demo, JIT' jit_demo_milliseconds dotnet "$folder/jit/compactor.dll" demo --report "$folder/report"
measure 'doctor, JIT' jit_doctor_milliseconds dotnet "$folder/jit/compactor.dll" doctor
[ -n "$result" ] || exit 0
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
cat >"$result" <<JSON
{
  "benchmark": "wall time of a published tool, start-up included",
  "date": "$(date -u +%F)",
  "commit": $commit,
  "cpu": "${cpu//\"/}",
  "cores": $(nproc),
  "load_average_before": $load,
  "os": "$(uname -sr)",
  "dotnet": "$(dotnet --list-runtimes | sed -n 's/^Microsoft\.NETCore\.App \([^ ]*\).*/\1/p' | tail -n 1)",
$(IFS=$'\n'; sed '$!s/$/,/' <<<"${lists[*]}")
}
JSON
