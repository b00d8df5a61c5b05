#!/usr/bin/env bash
# Makes the payload of the GPU tests: one archive for a Linux machine with a driver and NVRTC, and neither .NET nor this repository.
#   bash tests/gpu/pack.sh [ARCHIVE]        build/compactor-gpu.tar.xz unless named
#   bash tests/gpu/pack.sh --check ARCHIVE  only says how large an archive is, and whether that is small enough
set -euo pipefail

limit=40000000
# check ARCHIVE: fails where it is too large to be carried around
check() {
  local bytes
  bytes=$(stat -c %s -- "$1")
  if [ "$bytes" -gt "$limit" ]; then
    echo "tests/gpu/pack.sh: $1 takes $bytes bytes; a payload may take $limit" >&2
    return 1
  fi
  echo "$1: $bytes bytes of $limit"
}

case "${1:-}" in
  --check)
    [ $# -eq 2 ] && [ -f "$2" ] || { echo "tests/gpu/pack.sh: --check takes an archive that is there" >&2; exit 2; }
    check "$2"
    exit ;;
  -*) echo "tests/gpu/pack.sh: unknown option '$1'; use --check ARCHIVE, or the archive to write" >&2; exit 2 ;;
esac
[ $# -le 1 ] || { echo "tests/gpu/pack.sh: $# archives are named; name one or none" >&2; exit 2; }
mkdir -p "$(dirname "${1:-.}")"
archive=$(realpath -m -- "${1:-$(dirname "$0")/../../build/compactor-gpu.tar.xz}")
cd "$(dirname "$0")/../.."
for needed in dotnet xz tar; do
  command -v "$needed" >/dev/null || { echo "tests/gpu/pack.sh: $needed is not on PATH; install it first" >&2; exit 1; }
done
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1

work=build/gpu payload=build/gpu/compactor-gpu
rm -rf "$payload"
mkdir -p "$payload"
# publish PROJECT FOLDER OPTION...
publish() {
  local project=$1 folder=$2
  shift 2
  dotnet publish "$project" -c Release -r linux-x64 --nologo -v quiet --artifacts-path "$work/artifacts" -o "$payload/$folder" -p:PublishDocumentationFiles=false -p:PublishReferencesDocumentationFiles=false "$@"
}
publish src/Compactor.Cli tool
publish bench/Compactor.Gpu.Bench bench
publish tests/Compactor.Gpu.Tests tests --self-contained -p:PublishAot=false
# What draws the tool's report, its demo and model, the emulator and symbols but those of the tests are of no use there.
find "$payload/tool" -mindepth 1 ! -name compactor -delete
rm -rf "$payload"/tests/simt "$payload"/tests/data/host
# Golden files no test of kernels reads, and the largest: they are weights and caches, which do not compress.
find "$payload/tests/data/golden" \( -name "kvpress_compactor*" -o -size +1400k \) -delete
find "$payload" \( -name '*.dbg' -o -name '*.xml' -o -name '*.pdb' ! -path '*/tests/*' \) -delete

bash tests/nvrtc.sh
"$payload/tool/compactor" kernels compile --nvrtc tests/.nvrtc/12.4/libnvrtc.so.12 --arch 80,86,89,90 --out "$payload/tests/compactor-kernels"
ln -s ../tests/compactor-kernels "$payload/tool/compactor-kernels"
cp tests/gpu/run.sh tests/gpu/README.md LICENSE "$payload"
git describe --always --dirty >"$payload/version" 2>/dev/null || echo unknown >"$payload/version"

# The same content gives the same archive, whenever it is made; most of it is x86 code.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$work" -c compactor-gpu | xz --x86 --lzma2=preset=9e >"$archive.part"
mv "$archive.part" "$archive"
check "$archive"
