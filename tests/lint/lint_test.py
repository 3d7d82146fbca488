#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every house rule is shown a breach in a small tree of its own, and must find that one and no other."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import lint  # noqa: E402

SPDX = "// SPDX-License-Identifier: MIT\n"
CLEAN = {
    "core/CMakeLists.txt": "# SPDX-License-Identifier: MIT\nforeach(folder gguf arch model contract)\n",
    "core/api/tensor.hpp": SPDX + "#pragma once\n#include <vector>\n",
    "core/gguf/reader.hpp": SPDX + '#pragma once\n#include "core/api/tensor.hpp"\n',
    "core/api/step.hpp": SPDX + "#pragma once\nenum class Op { add };\ninline Op op = Op::add;\n",
    "core/arch/x.cpp": SPDX + 'StageInfo a{.name = "embedding"};\nStageInfo b{.name = "moe_out"};\n',
    "core/contract/parse.cpp": SPDX + '#include <yaml-cpp/yaml.h>\n#include "core/gguf/reader.hpp"\n',
    "plugins/sinks/npy/npy_sink.hpp": SPDX + '#pragma once\n#include "core/api/tensor.hpp"\n',
    "plugins/sinks/npy/npy_sink.cpp": SPDX + '#include "plugins/sinks/npy/npy_sink.hpp"\n',
    "plugins/backends/cpu/pack-inl.hpp": SPDX + "#include <hwy/highway.h>\n",
    "tests/support/catch.hpp": SPDX + "#pragma once\n#include <catch2/catch.hpp>\n",
    "apps/tool/main.cpp": SPDX + '// using namespace std; in a comment\n#include "core/gguf/reader.hpp"\n',
    ".gitignore": "*.gguf\n",
    "cmake/tool.sh": "#!/usr/bin/env bash\n# SPDX-License-Identifier: MIT\ncd /usr/share\n",
}
PLANTED = {
    "includes": {
        "a folder further down": ("core/gguf/a.cpp", SPDX + '#include "core/contract/parse.cpp"\n', 2),
        "core sees a plugin": ("core/model/a.cpp", SPDX + '#include "plugins/sinks/npy/npy_sink.hpp"\n', 2),
        "a plugin sees core": ("plugins/sinks/npy/a.cpp", SPDX + '#include "core/gguf/reader.hpp"\n', 2),
        "a plugin sees another": ("plugins/sinks/x/a.cpp", SPDX + '#include "plugins/sinks/npy/npy_sink.hpp"\n', 2),
        "an app sees tests": ("apps/tool/a.cpp", SPDX + '#include "tests/support/catch.hpp"\n', 2),
        "a relative path": ("core/gguf/a.cpp", SPDX + '#include "reader.hpp"\n', 2),
        "an unknown folder": ("core/util/a.cpp", SPDX, 1),
        "YAML outside": ("core/gguf/a.cpp", SPDX + "\n# include <yaml-cpp/yaml.h>\n", 3),
        "Boost outside": ("apps/tool/a.cpp", SPDX + "#include <boost/dll.hpp>\n", 2),
        "Catch2 outside": ("tests/unit/x/a.cpp", SPDX + "#include <catch2/catch.hpp>\n", 2),
        "a header that GCC 12 lacks": ("core/api/a.cpp", SPDX + "#include <format>\n", 2),
    },
    "own_header_first": {
        "another first": ("core/gguf/reader.cpp", SPDX + '#include <vector>\n#include "core/gguf/reader.hpp"\n', 2),
        "not at all": ("core/gguf/reader.cpp", SPDX, 1),
    },
    "operators": {
        "in the core": ("core/gguf/a.cpp", SPDX + "bool f(Op op) { return op == Op::add; }\n", 2),
        "in an app": ("apps/tool/a.cpp", SPDX + "auto op = Op::add;\n", 2),
    },
    "stages": {
        "by its name": ("core/gguf/a.cpp", SPDX + 'auto s = stages.find("embedding");\n', 2),
        "in a message": ("apps/tool/a.cpp", SPDX + 'auto text = "there is no moe_out here";\n', 2),
    },
    "spdx": {
        "none": ("core/api/a.cpp", "int a;\n", 1),
        "an empty file": ("core/api/a.cpp", "", 1),
        "after the shebang": ("cmake/a.sh", "#!/bin/sh\necho\n", 2),
        "a script without suffix": ("dev", "#!/bin/sh\n\n# SPDX-License-Identifier: MIT\n", 2),
        "a list file": ("tests/CMakeLists.txt", "project(x)\n", 1),
    },
    "pragma_once": {"none": ("core/api/a.hpp", SPDX + "// #pragma once\n", 1)},
    "using_namespace": {
        "global": ("core/api/a.cpp", SPDX + "using namespace std;\n", 2),
        "in a function": ("core/api/a.cpp", SPDX + "/* two\nlines */ void f() { using  namespace a::b; }\n", 3),
    },
    "file_names": {
        "Pascal": ("core/api/TensorView.cpp", SPDX, 1),
        "kebab": ("cmake/my-tool.py", "# SPDX-License-Identifier: MIT\n", 1),
    },
    "test_names": {"an option": ("tests/unit/x/a.cpp", SPDX + 'TEST_CASE("--set works") {}\n', 2)},
    "machine_paths": {
        "in code": ("core/api/a.cpp", SPDX + 'auto p = "' + "/ho" + 'me/somebody/x";\n', 2),
        "in a page": ("README.md", "see `" + "/ro" + "ot/models`\n", 1),
    },
    "ignored_files": {"a model": ("contracts/small.gguf", "GGUF", 1)},
}


class HouseRules(unittest.TestCase):
    def breaches(self, planted):
        with tempfile.TemporaryDirectory() as folder:
            for path, text in {**CLEAN, **planted}.items():
                file = pathlib.Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            subprocess.run(["git", "init", "--quiet", folder], check=True)
            tree = lint.Tree(folder)
            return [(rule, path, line) for rule, check in lint.RULES.items() for path, line, _ in check(tree)]

    def test_a_clean_tree_has_no_breach(self):
        self.assertEqual(self.breaches({}), [])

    def test_every_rule_is_planted(self):
        self.assertEqual(set(PLANTED), set(lint.RULES))

    def test_every_planted_breach_is_the_one_found(self):
        for rule, cases in PLANTED.items():
            for what, (path, text, line) in cases.items():
                with self.subTest(rule=rule, what=what):
                    self.assertEqual(self.breaches({path: text}), [(rule, path, line)])

    def test_a_tree_without_files_is_refused(self):
        with tempfile.TemporaryDirectory() as folder, self.assertRaises(SystemExit):
            lint.Tree(folder)

    def test_an_order_that_cannot_be_read_is_refused(self):
        with self.assertRaises(SystemExit):
            self.breaches({"core/CMakeLists.txt": "# SPDX-License-Identifier: MIT\n"})


if __name__ == "__main__":
    unittest.main()
