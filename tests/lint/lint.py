#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The house rules that a machine can check. lint.py TREE [RULE...]: prints every breach as path:line: rule: what, exits 1."""

import pathlib
import re
import subprocess
import sys

CPP = {".cpp", ".hpp", ".c", ".h", ".cu", ".cuh"}
HEADERS = {".hpp", ".h", ".cuh"}
SCRIPTS = {".py", ".sh", ".cmake"}
NOT_OURS = {".git", "compile_commands.json"}  # files at the top that no commit holds
FOLDERS = ["core", "plugins", "apps", "tests", "cmake", "contracts", "docs", ".ci"]

# Third-party headers, and where alone they may be included: what a library is for stands in one place.
THIRD_PARTY = [
    (r"yaml-cpp/", ["core/contract/"]),
    (r"boost/", ["core/plugin/"]),
    (r"CLI/", ["apps/", "tests/score/"]),
    (r"nlohmann/", ["core/file/", "core/contract/", "core/alone/", "core/recording/", "core/report/", "core/run/",
                    "core/kernel/", "apps/", "plugins/sinks/", "tests/"]),
    (r"(xxhash|xxh_x86dispatch)\.h$", ["core/model/", "core/contract/", "core/alone/", "plugins/sinks/", "tests/"]),
    (r"utf8\.h$", ["core/text/"]),
    (r"(tbb|oneapi)/", ["core/model/", "plugins/backends/"]),
    (r"hwy/", ["plugins/backends/"]),
    (r"(hdf5|H5)", ["plugins/sinks/hdf5/", "tests/"]),
    (r"catch2/", ["tests/support/"]),
    (r"benchmark/", ["tests/bench/"]),
    (r"(format|expected|ranges|source_location)$", []),  # missing from GCC 12's library, or unreadable for clang 14
]


class Tree:
    """The project's own files under a root, read once."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.texts = {}
        for path in self._paths():
            try:
                self.texts[path.relative_to(self.root).as_posix()] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                pass  # golden data
        if not self.texts:
            raise SystemExit(f"lint: no files of the project under {self.root}")

    def _paths(self):
        top = [p for p in sorted(self.root.iterdir()) if p.is_file() and p.name not in NOT_OURS]
        below = [p for folder in FOLDERS for p in sorted((self.root / folder).rglob("*"))]
        return [p for p in top + below if p.is_file() and "__pycache__" not in p.parts]

    def files(self, suffixes):
        return [(path, text) for path, text in self.texts.items() if pathlib.PurePath(path).suffix in suffixes]


def is_script(path, text):
    name = pathlib.PurePath(path)
    return name.suffix in SCRIPTS or name.name == "CMakeLists.txt" or text.startswith("#!")


def is_reincluded(path):
    """Highway's name for a header that is read once an instruction set, and so has a guard of its own."""
    return path.endswith("-inl.hpp")


def lines_of(text):
    return enumerate(text.splitlines(), start=1)


def code_lines(text):
    """Lines without comments and string contents; line numbers stay true."""
    pattern = r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/'
    blank = lambda m: '""' if m[0].startswith('"') else "\n" * m[0].count("\n")
    return lines_of(re.sub(pattern, blank, text, flags=re.DOTALL))


def core_order(tree):
    """The folders of core/, in the order of the data flow, as core/CMakeLists.txt has them."""
    cmake = tree.texts.get("core/CMakeLists.txt", "")
    found = re.search(r"foreach\(folder ([a-z_ \n]+)\)", cmake)
    if not found:
        raise SystemExit("lint: core/CMakeLists.txt has no line 'foreach(folder ...)' to read the order of folders from")
    return ["api"] + found[1].split()


def includes(text):
    for number, line in lines_of(text):
        found = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if found:
            yield number, found[1] == '"', found[2]


# Projects of others' plugins, which `moe-diag new` writes: each is a tree of its own.
TEMPLATES = "apps/moe_diag/new_"


def own_include_breach(tree, order, path, target):
    """Why `path` may not include the project's own header `target`, or None."""
    here, there = path.split("/"), target.split("/")
    if target not in tree.texts:
        if path.startswith(TEMPLATES) and f"{path.rpartition('/')[0]}/{target}" in tree.texts:
            return None
        return f'"{target}" is no file of the tree: include paths start at the root; other libraries come in <>'
    if here[0] == "core":
        if there[0] != "core":
            return f'core includes only core, found "{target}"'
        if order.index(there[1]) > order.index(here[1]):
            return f'core/{here[1]} comes before core/{there[1]} in the flow and may not include "{target}"'
    if here[0] == "plugins" and not target.startswith("core/api/") and there[:3] not in (here[:3], here[:2] + ["shared"]):
        return f'a plugin includes core/api, its own folder and {here[0]}/{here[1]}/shared, found "{target}"'
    if here[0] == "apps" and there[0] not in ("core", "apps"):
        return f'apps include core and apps, found "{target}"'
    return None


def check_includes(tree):
    order = core_order(tree)
    for path, text in tree.files(CPP):
        here = path.split("/")
        if here[0] == "core" and here[1] not in order:
            yield path, 1, f"core/{here[1]} is not among the folders of core/CMakeLists.txt: {' '.join(order)}"
            continue
        for number, own, target in includes(text):
            if own:
                breach = own_include_breach(tree, order, path, target)
                if breach:
                    yield path, number, breach
                continue
            for pattern, allowed in THIRD_PARTY:
                if re.match(pattern, target) and not path.startswith(tuple(allowed)):
                    yield path, number, f"<{target}> is included only by {', '.join(allowed) or 'nobody'}"


def check_own_header_first(tree):
    """So that a header which lacks an include breaks its own source."""
    for path, text in tree.files({".cpp"}):
        own = path.removesuffix(".cpp") + ".hpp"
        first = next(includes(text), None)
        if own in tree.texts and (first is None or first[2] != own):
            yield path, first[0] if first else 1, f'the first include is "{own}", found "{first[2] if first else "none"}"'


def check_operators(tree):
    """What is known of an operator stands in its file; an architecture puts steps of them together."""
    for path, text in tree.files(CPP):
        if not path.startswith(("core/", "apps/")) or path.startswith(("core/ops/", "core/arch/", "core/api/", TEMPLATES)):
            continue
        for number, line in code_lines(text):
            if re.search(r"\bOp::", line):
                yield path, number, "operators are told apart in core/ops and core/arch only: ask operator_of(step)"


def check_stages(tree):
    """A stage is told by its traits: an architecture alone knows its name."""
    rows = [text for path, text in tree.files(CPP) if path.startswith("core/arch/")]
    names = {name for text in rows for name in re.findall(r'StageInfo ?\w*\{\s*\.name = "(\w+)"', text)}
    for path, text in tree.files(CPP):
        if not path.startswith(("core/", "apps/")) or path.startswith("core/arch/"):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            for literal in re.findall(r'"((?:[^"\\]|\\.)*)"|//.*', line):
                example = re.sub(r"\bstage: \w+", "", literal)  # of YAML, for users
                named = names.intersection(re.findall(r"\w+", example))
                if any("_" in name for name in named) or literal in names:
                    yield path, number, f"stages are named in core/arch only: ask for a role or a trait, not '{literal}'"


def check_spdx(tree):
    for path, text in tree.texts.items():
        script = is_script(path, text)
        if not script and pathlib.PurePath(path).suffix not in CPP:
            continue
        wanted = ("#" if script else "//") + " SPDX-License-Identifier: MIT"
        lines = text.splitlines() or [""]
        number = 2 if lines[0].startswith("#!") else 1
        found = lines[number - 1] if len(lines) >= number else ""
        if found != wanted:
            yield path, number, f"expected '{wanted}', found '{found}'"


def check_pragma_once(tree):
    for path, text in tree.files(HEADERS):
        if not is_reincluded(path) and not re.search(r"^#pragma once$", text, flags=re.MULTILINE):
            yield path, 1, "a header has '#pragma once'"


def check_using_namespace(tree):
    for path, text in tree.files(CPP):
        for number, line in code_lines(text):
            if re.search(r"\busing\s+namespace\b", line):
                yield path, number, "name what is used instead of 'using namespace'"


def check_file_names(tree):
    for path, text in tree.texts.items():
        name = pathlib.PurePath(path)
        code = name.suffix in CPP | SCRIPTS
        if code and name.name not in ("__init__.py", "__main__.py") and not re.fullmatch(r"[a-z][a-z0-9_]*(-inl)?\.[a-z]+", name.name):
            yield path, 1, f"file names are snake_case, found '{name.name}'"


def check_test_names(tree):
    for path, text in tree.files(CPP):
        for number, line in lines_of(text):
            if re.search(r'\bTEST_CASE\(\s*"-', line):
                yield path, number, "ctest hands a test case's name to Catch2, which takes a leading '-' for an option"


def check_machine_paths(tree):
    pattern = re.compile(r"(?<![\w.}/-])/(?:work|root|home|Users|mnt)/\w")
    for path, text in tree.texts.items():
        for number, line in lines_of(text):
            found = pattern.search(line)
            if found:
                yield path, number, f"a path of one machine, '{line[found.start():].split()[0]}'"


def check_ignored_files(tree):
    """What git ignores is missing from everybody else's clone. A tree that git does not hold has nothing to ignore."""
    if not (tree.root / ".git").exists():
        return
    git = ["git", "-c", "safe.directory=*", "-C", tree.root, "ls-files", "-z"]
    ignored = [*git, "--others", "--ignored", "--exclude-standard", "--", *FOLDERS]
    for path in subprocess.run(ignored, check=True, capture_output=True, text=True).stdout.split("\0"):
        if path and "__pycache__" not in pathlib.PurePath(path).parts:
            yield path, 1, "git ignores this file, so no clone will have it: except its folder in .gitignore"


RULES = {
    "includes": check_includes,
    "own_header_first": check_own_header_first,
    "operators": check_operators,
    "stages": check_stages,
    "spdx": check_spdx,
    "pragma_once": check_pragma_once,
    "using_namespace": check_using_namespace,
    "file_names": check_file_names,
    "test_names": check_test_names,
    "machine_paths": check_machine_paths,
    "ignored_files": check_ignored_files,
}


def main(arguments):
    if not arguments or any(rule not in RULES for rule in arguments[1:]):
        raise SystemExit(f"usage: lint.py TREE [RULE...], where a RULE is one of {' '.join(RULES)}")
    tree = Tree(arguments[0])
    breaches = [(path, number, rule, what) for rule in arguments[1:] or RULES for path, number, what in RULES[rule](tree)]
    for path, number, rule, what in sorted(breaches):
        print(f"{path}:{number}: {rule}: {what}")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
