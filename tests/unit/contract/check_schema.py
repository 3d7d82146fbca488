# SPDX-License-Identifier: MIT
"""Validates contracts as an editor does: check_schema.py SCHEMA CONTRACT...

Prints a line for each contract: its name and what the schema says against it, or nothing more when it says nothing.
"""
import json
import re
import sys

import jsonschema
import yaml


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers, which editors read: 1e-5 is one, 010 and 0x10 are none, and neither is yes a boolean."""


Loader.yaml_implicit_resolvers = {}
for tag, pattern, first in [
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:int", r"^-?(?:0|[1-9][0-9]*)$", "-0123456789"),
    ("tag:yaml.org,2002:float", r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?$", "-0123456789"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|)$", ["~", "n", ""]),
]:
    Loader.add_implicit_resolver(tag, re.compile(pattern), list(first))


def objection(validator, path):
    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.load(file, Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return "not YAML: " + str(error).splitlines()[0]
    errors = sorted(validator.iter_errors(document), key=lambda e: list(map(str, e.absolute_path)))
    return "; ".join(f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in errors)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        schema = json.load(file)
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    for path in sys.argv[2:]:
        print(path.rsplit("/", 1)[-1], objection(validator, path).replace("\n", " "))


main()
