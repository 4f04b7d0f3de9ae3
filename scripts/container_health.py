"""What the image's HEALTHCHECK asks: does the API, or else the worker, of this container answer?

One image serves as both, so the ports are tried in turn. A container that runs neither (migrate,
the command line) counts as healthy for as long as it runs. Whoever knows what the container runs
names its port, `container_health.py 8080`: then nothing there, while it starts, is not healthy.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 3.0


def healthy(port: str) -> bool | None:
    """Return whether what listens on `port` answers well; None if nothing listens there."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return False
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ConnectionRefusedError) else False
    except OSError:
        return False
    return True


def main() -> int:
    """Return 0 unless a process of ours answers badly or not in time, or not at all on a named port."""
    if named := sys.argv[1:]:
        return 0 if all(healthy(port) for port in named) else 1
    ports = (os.environ.get("PORT") or "8080", os.environ.get("WORKER_PORT") or "9090")
    return 1 if False in {healthy(port) for port in ports} else 0


if __name__ == "__main__":
    sys.exit(main())
