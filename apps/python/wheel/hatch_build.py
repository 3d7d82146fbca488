# SPDX-License-Identifier: MIT
"""Puts the installed tree MOE_DIAG_TREE into a wheel for the platform MOE_DIAG_PLATFORM."""

import os
import pathlib

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TreeHook(BuildHookInterface):
    def initialize(self, version, build_data):
        tree = pathlib.Path(os.environ["MOE_DIAG_TREE"])
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{os.environ['MOE_DIAG_PLATFORM']}"
        if self.metadata.core.name != "moe-diag":  # a plugin is bound to the headers of its runner
            build_data["dependencies"] = [f"moe-diag=={self.metadata.version}"]
        files = {path: str(path.relative_to(tree)) for path in sorted(tree.rglob("*")) if path.is_file()}
        programs = {path: place.removeprefix("bin/") for path, place in files.items() if place.startswith("bin/")}
        build_data["shared_scripts"] = {str(path): place for path, place in programs.items()}
        build_data["shared_data"] = {str(path): place for path, place in files.items() if path not in programs}
