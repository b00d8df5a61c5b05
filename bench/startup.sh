#!/usr/bin/env bash
# Publishes the tool as one native executable and times `compactor demo` as a whole process, 11 times; prints every run and the median.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
dotnet publish src/Compactor.Cli -c Release -r linux-x64 -o "$folder" --nologo -v quiet
for _ in $(seq 12); do
  start=$(date +%s%N)
  "$folder/compactor" demo >/dev/null
  echo $((($(date +%s%N) - start) / 1000000))
done | tail -n 11 | sort -n | awk '{ ms[NR] = $1; printf "%s ", $1 } END { printf "\nmedian of 11 runs: %d ms wall\n", ms[6] }'
