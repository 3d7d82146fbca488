#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# cmake/in_root.sh ROOT COMMAND...: runs a command in a folder that holds a Debian or Ubuntu system, with /proc and /dev,
# and gives its exit code. The mounts are in a namespace of their own and end with it, as does every process started
# there. MOE_DIAG_JOBS and the proxies are the only variables that are passed on.
set -euo pipefail

fail() {
  echo "in_root: $*" >&2
  exit 2
}

root=${1:?ROOT}
shift
[[ -x $root/bin/sh && -e $root/etc/os-release ]] ||
  fail "$root: not a Debian or Ubuntu system; make one with: debootstrap --variant=minbase --include=git bookworm $root"
[[ $EUID -eq 0 ]] || fail "only root may change into $root; run it through sudo"
root=$(readlink -f "$root")

mapfile -t passed < <(compgen -e | grep -iE '^(MOE_DIAG_JOBS|(https?|no|all)_proxy)$' || true)
environment=(HOME=/root LANG=C.UTF-8 TERM=dumb PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
for name in "${passed[@]}"; do environment+=("$name=${!name}"); done

# shellcheck disable=SC2016  # the inner shell expands it
exec unshare --mount --pid --fork --kill-child --mount-proc="$root/proc" sh -euc '
  root=$1
  shift
  mount --rbind /dev "$root/dev"
  exec chroot "$root" "$@"' sh "$root" env -i "${environment[@]}" "$@"
