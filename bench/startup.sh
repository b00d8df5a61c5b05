#!/usr/bin/env bash
# Publishes the tool as one native executable and times `compactor demo` as a whole process, 11 times after one untimed; prints every run and the median.
#   bash bench/startup.sh [RESULT.json]
set -euo pipefail
result=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
dotnet publish src/Compactor.Cli -c Release -r linux-x64 -o "$folder/tool" --nologo -v quiet
samples=()
for run in $(seq 0 11); do
  start=$(date +%s%N)
  "$folder/tool/compactor" demo --report "$folder/report" >/dev/null
  [ "$run" -eq 0 ] || samples+=($((($(date +%s%N) - start) / 1000000)))
done
median=$(printf '%s\n' "${samples[@]}" | sort -n | sed -n 6p)
echo "${samples[*]}"
echo "median of ${#samples[@]} runs: $median ms wall"
[ -n "$result" ] || exit 0
cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
cat >"$result" <<JSON
{
  "benchmark": "wall time of a published compactor demo, start-up and report included",
  "date": "$(date -u +%F)",
  "commit": "$(git rev-parse --short HEAD)",
  "cpu": "${cpu//\"/}",
  "cores": $(nproc),
  "milliseconds": [$(IFS=,; echo "${samples[*]}")],
  "median_milliseconds": $median
}
JSON
