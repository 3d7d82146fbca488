#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# cmake/try_packages.sh PACKAGES ROOT: installs each package of a folder in a copy of the bare Debian or Ubuntu in ROOT,
# which stays as it is, and runs the quickstart there. The Debian package is tried only on the system it was made on:
# it depends on that one's libraries.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
packages=$(readlink -f "$1")
root=${2:?the folder of a Debian or Ubuntu system}
copy=$(mktemp -d "${TMPDIR:-/tmp}/moe-diag-root.XXXXXX")
trap 'rm -rf --one-file-system "$copy"' EXIT

# What a folder's system is called: "debian 12".
# shellcheck disable=SC1091  # another system's file
system() { (. "$1/etc/os-release" && echo "$ID ${VERSION_ID:-}"); }

# try WHAT FILE PREPARE COMMANDS: the commands install $file and leave the prefix in $prefix; timed without PREPARE.
try() {
  local start
  echo "== $(system "$root"): $1 ${2##*/}"
  rm -rf --one-file-system "${copy:?}"/*
  cp -a --reflink=auto "$root/." "$copy"
  mkdir "$copy/packages"
  cp "$2" "$copy/packages"
  cmake/in_root.sh "$copy" sh -euc "export DEBIAN_FRONTEND=noninteractive; $3"
  start=$SECONDS
  cmake/in_root.sh "$copy" sh -euc "export DEBIAN_FRONTEND=noninteractive; cd /root; file=/packages/${2##*/}; $4
    \"\$prefix/bin/moe-diag\" run \"\$prefix/share/moe-diag/contracts/quickstart.yaml\" --out out >report
    head -n 1 report
    \"\$prefix/bin/moe-diag\" plugins"
  echo "installed and run within $((SECONDS - start)) s"
}

apt='apt-get -qq -o Dpkg::Use-Pty=0'
archives=("$packages"/moe-diag-[0-9]*.tar.gz) wheels=("$packages"/moe_diag-[0-9]*.whl) debs=("$packages"/moe-diag_*.deb)

# shellcheck disable=SC2016  # expanded by the shell in the copy
try archive "${archives[0]}" true 'mkdir /opt/moe-diag
  tar -xzf "$file" -C /opt/moe-diag --strip-components 1
  prefix=/opt/moe-diag'
if [[ $(system "$root") == "$(system '')" ]]; then
  # shellcheck disable=SC2016
  try "Debian package" "${debs[0]}" "$apt update" "$apt install -y --no-install-recommends \"\$file\" >/dev/null
    prefix=/usr"
else
  echo "== $(system "$root"): the Debian package was made on $(system ''), so it is not tried"
fi
# shellcheck disable=SC2016
try wheel "${wheels[0]}" "$apt update; $apt install -y --no-install-recommends python3-venv >/dev/null
  python3 -m venv /opt/venv" '/opt/venv/bin/pip install --quiet --no-index "$file"; prefix=/opt/venv'
