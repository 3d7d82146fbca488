#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs what is missing, and nothing else, on Debian 12, Debian 13 and Ubuntu 24.04:
#
#   cmake/bootstrap.sh            what building and testing need, and .venv with what the tests compare with
#   cmake/bootstrap.sh tidy       the same and the tools of ./dev format and ./dev lint
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

packages=(
  build-essential cmake ninja-build pkg-config git ca-certificates
  libboost-dev libyaml-cpp-dev libcli11-dev libfmt-dev nlohmann-json3-dev libxxhash-dev libtbb-dev libhwy-dev
  libutfcpp-dev libhdf5-dev hdf5-tools
  catch2 libbenchmark-dev python3 python3-venv locales
  file  # with which CPack finds what a Debian package depends on
)
tidy_packages=(clang-format clang-tidy)

missing_packages() {
  local package
  for package in "$@"; do
    dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
  done
}

# apt-get as root, through sudo otherwise; archives and mirrors fail now and then, hence the retries.
apt_get() {
  local as_root=()
  if [[ $EUID -ne 0 ]]; then as_root=(sudo); fi
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 \
    -o Dpkg::Use-Pty=0 "$@" </dev/null
}

# Root, or sudo that either asks nobody or has somebody to ask.
may_install() {
  [[ $EUID -eq 0 ]] || { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; }
}

install_packages() {
  if ! command -v dpkg-query >/dev/null; then
    echo "bootstrap: not a Debian or Ubuntu system; make sure that you have the equivalents of: $*" >&2
    return
  fi
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if [[ ${#missing[@]} -eq 0 ]]; then return; fi
  if ! may_install; then
    echo "bootstrap: packages are missing, and this is neither root nor a user with sudo. Please have somebody run:" >&2
    echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  echo "bootstrap: installing ${missing[*]}"
  apt_get update
  apt_get install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# The stamp is the list that was installed, so a changed list installs anew.
make_venv() {
  local wanted=tests/requirements.txt stamp=.venv/requirements.txt
  if cmp -s "$wanted" "$stamp"; then return; fi
  local python=/usr/bin/python3
  if [[ ! -x $python ]]; then python=python3; fi
  echo "bootstrap: making .venv with what the tests compare with"
  "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 5 --only-binary=:all: -r "$wanted"
  cp "$wanted" "$stamp"
}

if [[ ${1:-} == tidy ]]; then packages+=("${tidy_packages[@]}"); fi
install_packages "${packages[@]}"
make_venv
