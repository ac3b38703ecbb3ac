"""Prints the names of the extension modules that setup.py builds, for stubtest."""

from __future__ import annotations

import ast
from pathlib import Path

for node in ast.parse((Path(__file__).parent.parent / "setup.py").read_text()).body:
    if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "EXTENSIONS" and isinstance(node.value, ast.Dict):
        print("\n".join(key.value for key in node.value.keys if isinstance(key, ast.Constant)))
