# SPDX-License-Identifier: MIT
"""check_xml.py SCHEMA FILE: exits 1, and says why, when the XML file does not follow the schema."""

import sys

from lxml import etree

schema = etree.XMLSchema(etree.parse(sys.argv[1]))
if not schema.validate(etree.parse(sys.argv[2])):
    print("\n".join(f"{e.line}: {e.message}" for e in schema.error_log))
    sys.exit(1)
