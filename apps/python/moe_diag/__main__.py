# SPDX-License-Identifier: MIT
"""The command line of the package: `python -m moe_diag convert DUMP`. Exit codes: 0 all files are converted, 1 some were
refused, 2 the command line is wrong, 4 an output cannot be written."""

import argparse
import sys

from .convert import convert
from .torch_files import TorchFileError


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m moe_diag")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert", help="files of torch.save to safetensors")
    command.add_argument("path", help="a .pt file, or a folder with .pt and .pth files in it and below")
    command.add_argument("--out", metavar="DIR", help="where to write, with the same names; else each beside its original")
    command.add_argument("--replace", action="store_true", help="write over files that exist")
    options = parser.parse_args(arguments)
    try:
        written, refused = convert(options.path, options.out, replace=options.replace), []
    except TorchFileError as error:
        written, refused = error.written, error.refused
    except FileNotFoundError as error:
        parser.exit(2, f"{error}\n")
    except OSError as error:
        parser.exit(4, f"{error}\n")
    print(f"{len(written)} of {len(written) + len(refused)} files converted, {len(refused)} refused")
    sys.stdout.flush()
    for message in refused:
        print(message, file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
