"""h2load (Debian: nghttp2-client), the load generator for HTTP/2 and, by `--h1`, of HTTP/1.1 beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys


def is_there() -> bool:
    """Whether it can be used; says so if not."""
    if shutil.which("h2load") is None:
        print("h2load (Debian: nghttp2-client) is not there: HTTP/2 is not measured", file=sys.stderr)
        return False
    return True


def h2load(*options: str) -> float:
    """Requests per second of one run. All must succeed."""
    done = subprocess.run(["h2load", *options], check=True, capture_output=True, text=True, timeout=300)
    failed = re.search(r"(\d+) failed, (\d+) errored", done.stdout)
    speed = re.search(r"finished in .*?, ([\d.]+) req/s", done.stdout)
    good = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", done.stdout)
    if not (failed and speed and good and failed.groups() == ("0", "0")):
        sys.exit(f"h2load was not answered as it should: {done.stdout}")
    return float(speed[1])
