#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# cmake/package.sh [BUILD]: packs a build with MOE_DIAG_BUNDLE (build/package) into BUILD/packages: an archive and a wheel,
# which bring their libraries, and a Debian package, which depends on those of the distribution it is made on. The cuda
# backend, where it was built, is packed apart.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
build=$(readlink -f "${1:-build/package}")
out=$build/packages
version=$(sed -n 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
name=moe-diag-$version-linux-$(uname -m)

fail() {
  echo "package: $*" >&2
  exit 1
}

# Prints the program and library files below a folder.
elf_files() { find "$1" -type f \( -name '*.so*' -o -perm -u+x \) -exec sh -c 'head -c4 "$1" | grep -q ELF' _ {} \; -print; }

# install TREE COMPONENT...
install() {
  local component
  for component in "${@:2}"; do
    cmake --install "$build" --strip --prefix "$1" --component "$component" >/dev/null
  done
}

# A wheel holds no links: the name that programs ask for becomes the file itself.
without_links() {
  local link
  find "$1" -type l | while read -r link; do
    cp --remove-destination "$(readlink -f "$link")" "$link"
  done
  find "$1" -type f -name '*.so*' | while read -r file; do
    if [[ $(objdump -p "$file" | awk '$1 == "SONAME" {print $2}') != "${file##*/}" ]]; then rm "$file"; fi
  done
}

# The licence of each library in a folder, from the Debian package that it comes from.
licences() {
  local folder=$1 library package
  mkdir -p "$folder/licences"
  for library in "$folder"/*.so*; do
    package=$(dpkg-query --search "*/${library##*/}" | head -n 1 | cut -d: -f1) || fail "no package has $library"
    cp -L "/usr/share/doc/$package/copyright" "$folder/licences/$package" || fail "$library: no licence in $package"
    dpkg-query --show --showformat='${source:Package} ${source:Version}\n' "$package"
  done | sort -u >"$folder/licences/sources"
  cp -rL /usr/share/common-licenses "$folder/licences/common-licenses"
}

# Every library that a file of the tree asks for is in the tree or in a base system.
check_needed() {
  local tree=$1 base='^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|util|stdc\+\+|gcc_s)\.so\.[0-9]+)$' missing
  missing=$(elf_files "$tree" | xargs objdump -p | awk '$1 == "NEEDED" {print $2}' | sort -u | grep -vE "$base" |
    while read -r library; do [[ -e $tree/lib/moe-diag/libraries/$library ]] || echo "$library"; done)
  [[ -z $missing ]] || fail "libraries that are neither packed nor in a base system:" "$missing"
}

# Prints the newest version of the symbols GLIBC_ or GLIBCXX_ that files below the folders ask for.
newest() { elf_files "$2" | xargs objdump -T | grep -oE "\b$1_[0-9.]+" | sort -Vu | tail -n 1 | cut -d_ -f2; }

archive() { tar --owner=0 --group=0 --sort=name -C "${1%/*}" -czf "$out/$2.tar.gz" "${1##*/}"; }

# wheel SOURCE TREE GLIBC
wheel() {
  local python=.venv/bin/python
  MOE_DIAG_TREE=$2 MOE_DIAG_PLATFORM=manylinux_${3/./_}_$(uname -m) "$python" -m pip wheel --quiet \
    --disable-pip-version-check --no-build-isolation --no-deps --no-index --wheel-dir "$out" "apps/python/$1"
}

rm -rf "$out"
tree=$out/$name
install "$tree" runner libraries
without_links "$tree/lib/moe-diag/libraries"
licences "$tree/lib/moe-diag/libraries"
check_needed "$tree"
glibc=$(newest GLIBC "$tree")
archive "$tree" "$name"
wheel wheel "$tree" "$glibc"

(cd "$out" && cpack -G DEB --config "$build/CPackConfig.cmake" -B "$out" >cpack.log) || fail "$(cat "$out/cpack.log")"

if [[ -e $(find "$build/lib/moe-diag/plugins" -name moe_diag_backend_cuda.so) ]]; then
  mkdir "$out/cuda"
  install "$out/cuda/$name" cuda
  archive "$out/cuda/$name" "${name/moe-diag/moe-diag-cuda}"
  wheel wheel_cuda "$out/cuda/$name" "$(newest GLIBC "$out/cuda/$name")"
fi

rm -rf "$out"/_CPack_Packages "$out/cpack.log" "$out/cuda"
echo "needs glibc $glibc and libstdc++ $(newest GLIBCXX "$tree") (GLIBCXX), or newer"
find "$out" -maxdepth 1 -type f -printf '%s bytes  %p\n'
