# SPDX-License-Identifier: MIT
"""package_test.py BUILD: packs the build as ./dev package does, installs each package, and uses it without the tree."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import yaml

BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
PACKAGES = BUILD / "packages"


def run(*command, **more):
    finished = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert finished.returncode == 0, f"{command}: exit {finished.returncode}\n{finished.stdout}{finished.stderr}"
    return finished.stdout


def only(pattern):
    (found,) = PACKAGES.glob(pattern)
    return found


class PackageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.said = run("cmake/package.sh", BUILD)

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def check_prefix(self, prefix):
        """All that is promised of an installation, with nothing of the tree or the build at hand."""
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        tool, shared = prefix / "bin" / "moe-diag", prefix / "share" / "moe-diag"
        report = run(tool, "run", shared / "contracts" / "quickstart.yaml", "--out", self.folder / "out",
                     cwd=self.folder, env=environment)  # fmt: skip
        self.assertTrue(report.startswith("HELD: quickstart"), report)
        plugins = run(tool, "plugins", cwd=self.folder, env=environment)
        for name in ("cpu", "npy", "hdf5", "stats"):
            self.assertRegex(plugins, rf"(?m)^\S+ +{name}\b")
        self.assertNotIn("refused", plugins)
        for file in ("docs/write-a-sink.md", "docs/examples/coactivation/CMakeLists.txt", "contracts/README.md"):
            self.assertTrue((shared / file).is_file(), file)
        self.assertTrue((prefix / "include/moe-diag/core/api/sink.hpp").is_file())
        self.assertTrue((prefix / "share/doc/moe-diag/copyright").is_file())

    def check_libraries(self, prefix):
        """Each packed library has its licence beside it."""
        libraries = prefix / "lib" / "moe-diag" / "libraries"
        names = {file.name for file in libraries.iterdir() if file.is_file()}
        self.assertTrue(any(name.startswith("libtbb.so") for name in names), names)
        self.assertTrue(any(name.startswith("libhdf5") for name in names), names)
        self.assertFalse([name for name in names if name.startswith(("libc.", "libstdc++"))])
        sources = (libraries / "licences" / "sources").read_text().split("\n")
        self.assertTrue(any(line.startswith("hdf5 ") for line in sources), sources)

    def action(self, environment, **inputs):
        """Runs the steps of action.yml as GitHub does; returns the lines written for it."""
        action = yaml.safe_load(pathlib.Path("action.yml").read_text())
        (step,) = action["runs"]["steps"]
        temporary = self.folder / "runner"
        temporary.mkdir()
        values = {f"inputs.{name}": definition["default"] for name, definition in action["inputs"].items()}
        values |= {f"inputs.{name}": str(value) for name, value in inputs.items()}
        values |= {"github.action_repository": "someone/moe-diag", "github.action_ref": "v9", "github.token": "none"}
        given = {name: values[text.removeprefix("${{ ").removesuffix(" }}")] for name, text in step["env"].items()}
        files = {"GITHUB_PATH": str(self.folder / "path"), "GITHUB_OUTPUT": str(self.folder / "output")}
        run("bash", "-euo", "pipefail", "-c", step["run"], cwd=self.folder,
            env=os.environ | given | files | {"RUNNER_TEMP": str(temporary)} | environment)  # fmt: skip
        self.assertEqual((self.folder / "output").read_text(), f"prefix={temporary}/moe-diag\n")
        return pathlib.Path((self.folder / "path").read_text().strip()).parent

    def test_archive_by_the_action(self):
        prefix = self.action({}, archive=only("moe-diag-[0-9]*.tar.gz"))
        self.check_prefix(prefix)
        self.check_libraries(prefix)

    def test_action_downloads_the_archive_of_its_release(self):
        gh = self.folder / "bin" / "gh"
        gh.parent.mkdir()
        gh.write_text(f"""#!/bin/bash
[[ "$1 $2 $3 $4 $5" == "release download v9 --repo someone/moe-diag" ]] || exit 1
while [[ $1 != --pattern ]]; do shift; done
pattern=$2
while [[ $1 != --output ]]; do shift; done
cd {PACKAGES} && cp $pattern "$2"
""")
        gh.chmod(0o755)
        prefix = self.action({"PATH": f"{gh.parent}:{os.environ['PATH']}"})
        self.assertIn("moe-diag ", run(prefix / "bin" / "moe-diag", "--version"))

    def test_wheel(self):
        prefix = self.folder / "environment"
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
            "--no-compile", "--ignore-installed", "--prefix", prefix, only("moe_diag-[0-9]*.whl"))  # fmt: skip
        self.check_prefix(prefix)
        self.check_libraries(prefix)
        (package,) = prefix.glob("lib/python*/site-packages/moe_diag")
        for module in pathlib.Path("apps/python/moe_diag").glob("*.py"):
            self.assertEqual((package / module.name).read_text(), module.read_text())
        found = run(sys.executable, "-c", "import moe_diag.kernel; print(moe_diag.kernel.find_program())", cwd=self.folder,
                    env={"PYTHONPATH": str(package.parent), "PATH": f"{prefix}/bin:/usr/bin:/bin"})  # fmt: skip
        self.assertEqual(found, f"{prefix}/bin/moe-diag\n")

    def test_debian_package(self):
        package = only("moe-diag_*.deb")
        run("dpkg-deb", "--extract", package, self.folder / "root")
        self.check_prefix(self.folder / "root" / "usr")
        self.assertFalse((self.folder / "root/usr/lib/moe-diag/libraries").exists())
        depends = run("dpkg-deb", "--field", package, "Depends")
        for library in ("libc6", "libstdc++6", "libtbb", "libhdf5", "libyaml-cpp"):
            self.assertIn(library, depends)

    def test_floor_is_the_tag(self):
        floor = self.said.split("needs glibc ")[1].split()[0]
        self.assertIn(f"manylinux_{floor.replace('.', '_')}_", only("moe_diag-[0-9]*.whl").name)


if __name__ == "__main__":
    unittest.main()
