#!/usr/bin/env bash
# Builds everything and runs all tests. --full adds the long ones and a sample of planted faults, save what takes
# an hour or more on the emulator (tests/simt/stress.sh). The last line is `N passed, N failed, N skipped`.
set -euo pipefail
cd "$(dirname "$0")/.."

explicit=off
case "${1:-}" in
  '') ;;
  --full) explicit=on ;;
  *) echo "tests/run.sh: unknown option '$1'; use --full or nothing" >&2; exit 2 ;;
esac

command -v dotnet >/dev/null || { echo "tests/run.sh: the .NET SDK (10.0) is not on PATH; install it first" >&2; exit 1; }
# the C interface is tested with what its users have; the kernels are compiled as C++
missing=()
for pair in cc:gcc c++:g++ g++:g++ cmake:cmake pkg-config:pkg-config objdump:binutils jq:jq; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
for package in numpy torch yaml; do
  python3 -c "import $package" 2>/dev/null || /usr/bin/python3 -c "import $package" 2>/dev/null || missing+=("python3-$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests/run.sh: missing here: ${missing[*]} (Debian's package names); install them first" >&2
    exit 1
  fi
  echo "tests/run.sh: installing ${missing[*]}"
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1

parts=() part_start=$SECONDS
# part NAME: what ran since the last part took this long
part() {
  local seconds=$((SECONDS - part_start))
  parts+=("$(printf '%4d:%02d min  %s' $((seconds / 60)) $((seconds % 60)) "$1")")
  part_start=$SECONDS
}

bash tests/nvrtc.sh
dotnet build -c Release --nologo -v quiet Compactor.Native.sln
part build

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
# The emulator's tests are compiled meanwhile, behind the others; what is wrong there ctest says, which builds what is missing.
cmake -S tests/simt -B build/simt >/dev/null
nice cmake --build build/simt --target simt_tests --parallel 2 >/dev/null 2>&1 &
compiling=$!
# The tool is tested as it is published: one native executable.
dotnet publish -c Release -r linux-x64 --nologo -v quiet -o build/tool src/Compactor.Cli
export COMPACTOR_TOOL=$PWD/build/tool/compactor
part publish
passed=0 failed=0 skipped=0 status=0
# start NAME: a project's tests, into a file of their own; their exit code is in another
start() {
  "tests/$1/bin/Release/net10.0/$1" --progress off --no-ansi --explicit "$explicit" --filter-not-trait Writes=results >"$results/$1" 2>&1 && echo 0 >"$results/$1.status" || echo $? >"$results/$1.status"
}
# The C interface's tests mostly wait for compilers; the others run beside them.
start Compactor.Abi.Tests &
beside=$!
for name in $(basename -a tests/*.Tests | grep -Ev '^Compactor\.(Abi|Gpu)\.Tests$') Compactor.Abi.Tests Compactor.Gpu.Tests; do
  echo "== $name"
  # the long tests measure processor time: nothing beside them
  [ "$name $explicit" != "Compactor.Gpu.Tests on" ] || wait "$compiling" || true
  if [ "$name" = Compactor.Abi.Tests ]; then wait "$beside"; else start "$name"; fi
  part "$name"
  [ "$(cat "$results/$name.status")" -eq 0 ] || status=1
  grep -v '^Ok, passed' "$results/$name" || true
  count() { sed -n "s/^ *$1: *\([0-9][0-9]*\)$/\1/p" "$results/$name" | tail -n 1; }
  if [ -z "$(count total)" ]; then
    echo "tests/run.sh: $name ended without a summary" >&2
    failed=$((failed + 1)) status=1
    continue
  fi
  passed=$((passed + $(count succeeded))) failed=$((failed + $(count failed))) skipped=$((skipped + $(count skipped)))
done

echo "== tests/simt"
wait "$compiling" || true
ctest --test-dir build/simt --output-on-failure --parallel "$(nproc)" >"$results/ctest" 2>&1 || status=$?
part tests/simt
grep -Ev '  Passed |^ +Start ' "$results/ctest" || true
summary=$(sed -n 's/^.*% tests passed, \([0-9]*\) tests failed out of \([0-9]*\)$/\1 \2/p' "$results/ctest")
if [ -n "$summary" ]; then
  passed=$((passed + ${summary#* } - ${summary% *})) failed=$((failed + ${summary% *}))
else
  echo "tests/run.sh: ctest ended without a summary" >&2
  failed=$((failed + 1)) status=1
fi
if [ "$explicit" = on ]; then
  echo "== tests/simt, a sample of planted faults"
  if python3 tests/simt/mutate.py build/simt --every 32; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  part "planted faults"
fi
[ "$failed" -eq 0 ] || status=1
printf '%s\n' "${parts[@]}"
echo "$passed passed, $failed failed, $skipped skipped"
exit "$status"
