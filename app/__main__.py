"""`python -m app …` is `tailrun …`."""

import os
import signal
import sys


def _stop(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


if os.getpid() == 1:
    # A container's first process has no default action: a SIGTERM while we import would be lost.
    signal.signal(signal.SIGTERM, _stop)

from app.cli import main  # noqa: E402 - it takes a second or two

if __name__ == "__main__":
    main()
