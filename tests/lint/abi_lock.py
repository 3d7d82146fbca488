#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""abi_lock.py TREE [--pin [--again]]: core/api is what its ABI number was pinned for, or says what to do and exits 1.

--pin writes the lock for a number that was raised. --again pins the number that stands there once more, which is right
only while no plugin of that number is in anybody's hands."""

import hashlib
import pathlib
import re
import sys

LOCK = "tests/lint/abi_lock.txt"
HEADERS = "core/api"
NUMBER = re.compile(r"(constexpr std::uint32_t abi_version = )(\d+);")
PIN = "./dev pin-abi"


def normalised(text):
    """Without comments and blanks, so that neither a word nor the formatter changes the digest."""
    pattern = r'("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\')|//[^\n]*|/\*.*?\*/|\s+'
    return re.sub(pattern, lambda m: m[1] or "", text, flags=re.DOTALL)


def current(tree):
    """The ABI number of the tree, and the digest of everything else in its headers."""
    number, digest = None, hashlib.sha256()
    for path in sorted((tree / HEADERS).rglob("*")):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        found = NUMBER.search(text)
        if found:
            number = int(found[2])
            text = NUMBER.sub(r"\1;", text)
        digest.update(f"{path.relative_to(tree).as_posix()}\0{normalised(text)}\0".encode())
    if number is None:
        raise SystemExit(f"{HEADERS}: no 'constexpr std::uint32_t abi_version = N;' found")
    return number, digest.hexdigest()


def pinned(tree):
    number, digest = (tree / LOCK).read_text(encoding="utf-8").split("\n")[-2].split()
    return int(number), digest


def mistake(now, then):
    """What is wrong, and what to do about it; empty: nothing."""
    (number, digest), (pinned_number, pinned_digest) = now, then
    if number < pinned_number:
        return f"abi_version is {number}, ABI {pinned_number} is pinned: numbers only rise, make it {pinned_number + 1}"
    if digest == pinned_digest and number != pinned_number:
        return (
            f"abi_version is {number}, and {HEADERS} is still that of ABI {pinned_number}: every plugin would be refused "
            f"for nothing, set it back to {pinned_number}"
        )
    if digest != pinned_digest and number == pinned_number:
        return (
            f"{HEADERS} is not what ABI {number} was pinned for, and plugins built before would still be loaded: raise "
            f"abi_version in {HEADERS}/abi.hpp to {number + 1}, then {PIN}"
        )
    return "" if digest == pinned_digest else f"ABI {number} is not pinned yet: {PIN}"


def pin(tree, again):
    now = current(tree)
    if (tree / LOCK).exists():
        number, pinned_number = now[0], pinned(tree)[0]
        if number < pinned_number or (number == pinned_number and now != pinned(tree) and not again):
            return mistake(now, pinned(tree))
    text = f"# An ABI number and the digest of the {HEADERS} that it stands for; {PIN} writes this file.\n"
    (tree / LOCK).write_text(f"{text}{now[0]} {now[1]}\n", encoding="utf-8")
    print(f"{LOCK}: ABI {now[0]} is {now[1][:16]}")
    return ""


def main(arguments):
    if not arguments or arguments[1:] not in ([], ["--pin"], ["--pin", "--again"]):
        raise SystemExit(__doc__)
    tree = pathlib.Path(arguments[0])
    what = pin(tree, "--again" in arguments) if "--pin" in arguments else mistake(current(tree), pinned(tree))
    if what:
        print(f"{LOCK}: {what}")
    return 1 if what else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
