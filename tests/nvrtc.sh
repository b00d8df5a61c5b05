#!/usr/bin/env bash
# Puts NVIDIA's run-time compiler, which needs no GPU, into tests/.nvrtc/<version>: unpacked from Debian's archive, 12.4 from trixie and 11.8 from bookworm.
# Nothing is installed and no root is needed: apt gets lists and a cache of its own, and the machine's Debian mirror with another suite and component.
set -euo pipefail
cd "$(dirname "$0")"

fetch() { # version suite package...
  local version=$1 suite=$2
  shift 2
  [ ! -d ".nvrtc/$version" ] || return 0
  local sources=/etc/apt/sources.list.d/debian.sources
  if [ ! -r "$sources" ] || ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
    echo "tests/nvrtc.sh: this is no Debian with $sources; put NVRTC $version (libnvrtc.so.* and libnvrtc-builtins.so.*) into $PWD/.nvrtc/$version yourself" >&2
    return 1
  fi
  echo "tests/nvrtc.sh: unpacking NVRTC $version"
  local work
  mkdir -p .nvrtc
  work=$(mktemp -d "$PWD/.nvrtc/unpack.XXXXXX")
  mkdir -p "$work"/{parts,state/lists/partial,cache/archives/partial,root,lib}
  # The first stanza of debian.sources is the archive itself; security and updates have stanzas or suites of their own.
  awk 'BEGIN { RS = "" } NR == 1' "$sources" | sed -e "s/^Suites:.*/Suites: $suite/" -e 's/^Components:.*/Components: non-free/' >"$work/parts/debian.sources"
  touch "$work/status"
  local apt=(apt-get -qq -o APT::Sandbox::User= -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::State=$work/state"
    -o "Dir::State::Status=$work/status" -o "Dir::Cache=$work/cache" -o Acquire::Languages=none -o Acquire::Retries=3)
  if "${apt[@]}" update && (cd "$work/root" && "${apt[@]}" download "$@") && find "$work/root" -name '*.deb' -exec dpkg -x {} "$work/root" \; \
      && find "$work/root" -name 'libnvrtc*.so*' -exec cp -P {} "$work/lib" \; && [ -n "$(ls "$work/lib")" ]; then
    # Whoever is first wins; another run's copy is as good.
    mv -T "$work/lib" ".nvrtc/$version" 2>/dev/null || [ -d ".nvrtc/$version" ]
    rm -rf "$work"
  else
    rm -rf "$work"
    echo "tests/nvrtc.sh: $* of Debian $suite could not be unpacked; see above what apt said" >&2
    return 1
  fi
}

fetch 12.4 trixie libnvrtc12 libnvrtc-builtins12.4
fetch 11.8 bookworm libnvrtc11.2 libnvrtc-builtins11.8
