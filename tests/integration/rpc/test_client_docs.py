"""The examples of docs/CLIENT.md, as they stand there, against a real node: only its port is another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.node import ROOT, AnvilNode


def blocks(language: str) -> list[str]:
    text = (ROOT / "docs" / "CLIENT.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_examples(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "anvil"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m anvil.cli.main "$@"\n')
    script.chmod(0o755)
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1"}) as node:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANVIL_")} | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "ACCESS_KEY": node.access_key,
            "SECRET_KEY": node.secret_key,
        }
        shell = "set -euo pipefail\n" + "".join(blocks("sh")).replace("http://127.0.0.1:50051", node.endpoint)
        python = "".join(blocks("python")).replace("http://127.0.0.1:50051", node.endpoint)
        assert "put -r" in shell and "upload(" in python
        for command in (["bash", "-c", shell], [sys.executable, "-c", python]):
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "copy" / "2024" / "b.txt").read_text() == "two\n"
        assert len((tmp_path / "numbers.txt").read_text().split()) == 100_000
        assert (tmp_path / "token.txt").read_text().count(".") == 2
