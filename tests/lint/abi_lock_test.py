#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The lock over core/api is shown each change that it must see, and each that it must not."""

import contextlib
import io
import pathlib
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import abi_lock  # noqa: E402

ABI = "// A comment.\ninline constexpr std::uint32_t abi_version = 3;\nstruct A {\n  int a;  // first\n};\n"


class Lock(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tree = pathlib.Path(folder.name)
        (self.tree / "core/api").mkdir(parents=True)
        (self.tree / "tests/lint").mkdir(parents=True)
        self.write("abi.hpp", ABI)
        self.write("sink.hpp", 'const char* text = "a // b";\n')
        self.assertEqual(self.run_lock("--pin")[0], 0)

    def write(self, name, text):
        (self.tree / "core/api" / name).write_text(text, encoding="utf-8")

    def run_lock(self, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = abi_lock.main([str(self.tree), *arguments])
        return code, out.getvalue()

    def test_nothing_changed(self):
        self.assertEqual(self.run_lock(), (0, ""))

    def test_comments_and_blanks_are_free(self):
        self.write("abi.hpp", "/* Another\n comment. */\n\n" + ABI.replace("// first", "").replace("{\n", "\n{"))
        self.assertEqual(self.run_lock(), (0, ""))

    def test_a_changed_header_needs_another_number(self):
        changes = [
            ("abi.hpp", ABI.replace("int a", "long a")),
            ("sink.hpp", 'const char* text = "a // c";\n'),  # within a string it is no comment
            ("sink.hpp", 'const char* text = "a  // b";\n'),
            ("new.hpp", "struct B {};\n"),
        ]
        for name, text in changes:
            self.setUp()
            self.write(name, text)
            code, said = self.run_lock()
            self.assertEqual(code, 1)
            self.assertIn("raise abi_version in core/api/abi.hpp to 4, then ./dev pin-abi", said)
            self.assertEqual(self.run_lock("--pin")[0], 1)
            self.assertEqual(self.run_lock()[0], 1)

            self.write("abi.hpp", (self.tree / "core/api/abi.hpp").read_text().replace("= 3;", "= 4;"))
            self.assertIn("ABI 4 is not pinned yet: ./dev pin-abi", self.run_lock()[1])
            self.assertEqual(self.run_lock("--pin")[0], 0)
            self.assertEqual(self.run_lock(), (0, ""))

    def test_a_removed_header_needs_another_number(self):
        (self.tree / "core/api/sink.hpp").unlink()
        self.assertIn("to 4", self.run_lock()[1])

    def test_another_number_needs_a_change(self):
        self.write("abi.hpp", ABI.replace("= 3;", "= 4;"))
        self.assertIn("set it back to 3", self.run_lock()[1])

    def test_numbers_only_rise(self):
        self.write("abi.hpp", ABI.replace("= 3;", "= 2;").replace("int a", "long a"))
        self.assertIn("make it 4", self.run_lock()[1])
        self.assertEqual(self.run_lock("--pin", "--again")[0], 1)

    def test_again_pins_a_number_that_nobody_has(self):
        self.write("abi.hpp", ABI.replace("int a", "long a"))
        self.assertEqual(self.run_lock("--pin", "--again")[0], 0)
        self.assertEqual(self.run_lock(), (0, ""))


if __name__ == "__main__":
    unittest.main()
