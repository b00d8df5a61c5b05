#!/usr/bin/env bash
# Runs what this folder brings on the machine's GPU, within 8 minutes, and leaves compactor-gpu.json and compactor-gpu.log in the current folder, or in that of --out.
#   bash run.sh [--out DIR] [SECTION...]    doctor tests sanitizer benchmark, in this order, unless named; `more` only where it is named
# Exit codes: 0 everything asked for ran and held, 1 something did not, 2 wrong usage, 3 no GPU that can be used.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Seconds a section may take; the four that run unasked end within 8 minutes.
declare -A limits=([doctor]=20 [tests]=200 [sanitizer]=120 [benchmark]=120 [more]=1800)
order=(doctor tests sanitizer benchmark more)

refuse() { echo "run.sh: $1" >&2; exit 2; }
out=. chosen=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) [ $# -ge 2 ] || refuse "--out takes a folder"; out=$2; shift ;;
    *) [ -n "${limits[$1]:-}" ] || refuse "unknown section '$1'; the sections are ${order[*]}"; chosen+=("$1") ;;
  esac
  shift
done
[ ${#chosen[@]} -gt 0 ] || chosen=(doctor tests sanitizer benchmark)
mkdir -p -- "$out" && out=$(cd -- "$out" && pwd) && [ -w "$out" ] || refuse "'$out' cannot be written; give another folder with --out"
for part in tool/compactor tests/Compactor.Gpu.Tests bench/Compactor.Gpu.Bench; do
  [ -x "$here/$part" ] || refuse "$here/$part is not there: this is not the folder that tests/gpu/pack.sh packs"
done

log=$out/compactor-gpu.log json=$out/compactor-gpu.json
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
export COMPACTOR_TEST_DEVICE=cuda COMPACTOR_CACHE=$scratch/kernels TESTINGPLATFORM_TELEMETRY_OPTOUT=1 DOTNET_CLI_TELEMETRY_OPTOUT=1
rm -f -- "$json"
: >"$log"
say() { echo "$*" | tee -a "$log"; }
quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\t\r' '   ' | sed 's/[\\"]/\\&/g')"; }

sections=() status=0
# record NAME RESULT SECONDS TEXT: passed, failed, incomplete (its time was over) or skipped
record() {
  sections+=("{\"section\": $(quote "$1"), \"result\": $(quote "$2"), \"seconds\": $3, \"text\": $(quote "$4")}")
  say "== $1: $2 in $3 s: $4"
  case "$2" in passed | skipped) ;; *) status=1 ;; esac
}
# write_json: what is known so far, whole or not at all
write_json() {
  {
    printf '{\n  "version": %s,\n  "date": "%s",\n  "gpu": %s,\n  "nvrtc": %s,\n  "sections": [' "$(quote "$(cat "$here/version")")" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$gpu" "$nvrtc"
    local separator=
    for section in ${sections[@]+"${sections[@]}"}; do
      printf '%s\n    %s' "$separator" "$section"
      separator=,
    done
    printf '\n  ],\n  "benchmark": '
    if [ -s "$scratch/benchmark.json" ]; then sed '2,$s/^/  /' "$scratch/benchmark.json"; else printf null; fi
    printf '\n}\n'
  } >"$json.part" && mv -- "$json.part" "$json"
}
# limited SECONDS COMMAND...: into the log; 124 where its time was over
limited() { timeout -k 5 "$1" "${@:2}" </dev/null >>"$log" 2>&1; }
outcome() { case "$1" in 0) echo passed ;; 124 | 137) echo incomplete ;; *) echo failed ;; esac; }

start=$SECONDS gpu=null nvrtc=null
doctor=$(timeout -k 5 "${limits[doctor]}" "$here/tool/compactor" doctor --json 2>>"$log")
echo "$doctor" >>"$log"
gpu=$(sed -n 's/^  "gpu": \(.*\),$/\1/p' <<<"$doctor")
nvrtc=$(sed -n '/^  "nvrtc": {/,/^  }/s/^    "version": \([^,]*\),\{0,1\}$/\1/p' <<<"$doctor")
: "${gpu:=null}" "${nvrtc:=null}"
if [ "$gpu" = null ]; then
  reason=$(sed -n 's/^  "gpu_reason": "\(.*\)",$/\1/p' <<<"$doctor")
  record doctor failed $((SECONDS - start)) "${reason:-the tool said nothing; see the log}" >/dev/null
  write_json
  say "run.sh: no GPU that can be used, so nothing was run: ${reason:-the tool said nothing; see $log}" >&2
  exit 3
fi

# counts: those of a test run's output
counts() { sed -n 's/^ *\(total\|failed\|succeeded\|skipped\): *\([0-9]*\)$/\2 \1/p' | tail -n 4 | paste -sd, -; }
# suite SECTION FILTER...: the tests in their own words
suite() {
  local section=$1 code begun=$SECONDS
  shift
  if [ "$nvrtc" = null ]; then
    record "$section" failed 0 "no NVRTC was found, which compiles what the tests run; install one from 11.8 to 13 or set COMPACTOR_NVRTC"
    return
  fi
  local before
  before=$(wc -l <"$log")
  limited "${limits[$section]}" "$here/tests/Compactor.Gpu.Tests" --progress off --no-ansi --results-directory "$scratch" "$@"
  code=$?
  local said
  said=$(tail -n "+$((before + 1))" "$log" | counts)
  record "$section" "$(outcome $code)" $((SECONDS - begun)) "${said:-no summary; see the log}"
}

namespaces=(Compactor.Gpu.Tests.Agreement Compactor.Gpu.Tests.Interop Compactor.Gpu.Tests.OnDevice)
for section in "${order[@]}"; do
  [[ " ${chosen[*]} " == *" $section "* ]] || continue
  say "== $section"
  start=$SECONDS
  case "$section" in
    doctor) record doctor passed $((SECONDS - start)) "$gpu, NVRTC $nvrtc" ;;
    tests) suite tests --filter-namespace "${namespaces[@]}" ;;
    more) suite more --explicit only --filter-namespace "${namespaces[@]}" ;;
    sanitizer)
      sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/cuda/bin/compute-sanitizer 2>/dev/null | tail -n 1)
      if [ -z "$sanitizer" ]; then
        record sanitizer skipped 0 "compute-sanitizer is not installed"
        continue
      fi
      # Side by side: most of the time goes into compiling, and the device takes turns.
      tools=(memcheck racecheck initcheck synccheck) runs=()
      for tool in "${tools[@]}"; do
        timeout -k 5 "${limits[sanitizer]}" "$sanitizer" --tool "$tool" --error-exitcode 86 "$here/tests/Compactor.Gpu.Tests" --progress off --no-ansi --results-directory "$scratch" \
          --filter-class Compactor.Gpu.Tests.Agreement.ScoringTests Compactor.Gpu.Tests.Agreement.SelectionTests Compactor.Gpu.Tests.Agreement.AttentionTests \
          </dev/null >"$scratch/$tool.log" 2>&1 &
        runs+=($!)
      done
      for i in "${!tools[@]}"; do
        wait "${runs[$i]}"
        code=$?
        cat "$scratch/${tools[$i]}.log" >>"$log"
        record "sanitizer ${tools[$i]}" "$(outcome $code)" $((SECONDS - start)) "$(grep -E '^=+ (ERROR|RACECHECK|LEAK) SUMMARY' "$scratch/${tools[$i]}.log" | tail -n 1 | sed 's/^=* //'), tests of scores, selection and attention under $sanitizer: $(counts <"$scratch/$tool.log")"
      done ;;
    benchmark)
      shipped=()
      [ "$nvrtc" != null ] || shipped=(--kernels "$here/tests/compactor-kernels")
      limited "${limits[benchmark]}" "$here/bench/Compactor.Gpu.Bench" --json "$scratch/benchmark.json" --seconds $((limits[benchmark] - 20)) ${shipped[@]+"${shipped[@]}"}
      record benchmark "$(outcome $?)" $((SECONDS - start)) "what was measured is in the log, and in the JSON" ;;
  esac
  write_json
done
write_json
say "run.sh: $([ $status -eq 0 ] && echo "everything held" || echo "something did not hold"); see $json and $log"
exit $status
