# SPDX-License-Identifier: MIT
"""check_json.py SCHEMA FILE: exits 1, and says why, when the JSON file does not follow the schema, or has a key that the
schema does not describe: readers may meet new keys, but nobody adds one without a word."""

import json
import sys

import jsonschema


def closed(node):
    """The schema with no room for keys it does not name."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: closed(value) for key, value in node.items()}
    if "properties" in node and node.get("type") == "object":
        node.setdefault("additionalProperties", False)
    return node


schema = json.load(open(sys.argv[1], encoding="utf-8"))
jsonschema.Draft202012Validator.check_schema(schema)
errors = list(jsonschema.Draft202012Validator(closed(schema)).iter_errors(json.load(open(sys.argv[2], encoding="utf-8"))))
for error in errors:
    best = jsonschema.exceptions.best_match([error])
    print(f"{best.json_path}: {best.message}")
sys.exit(1 if errors else 0)
