#!/usr/bin/env bash
# Writes down the library's public surface after a change that is meant: src/Compactor.Native/PublicAPI.Unshipped.txt, from what the compiler says is missing.
set -euo pipefail
cd "$(dirname "$0")/../src/Compactor.Native"
printf '#nullable enable\n' >PublicAPI.Unshipped.txt
dotnet build -c Release --nologo -v minimal --no-incremental -p:TreatWarningsAsErrors=false |
  sed -n "s/.*warning RS0016: Symbol '\(.*\)' is not part of the declared public API.*/\1/p" | LC_ALL=C sort -u >PublicAPI.new
cat PublicAPI.new >>PublicAPI.Unshipped.txt
rm PublicAPI.new
git --no-pager diff --stat -- PublicAPI.Unshipped.txt
