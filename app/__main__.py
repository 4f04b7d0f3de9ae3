"""`python -m app …` is `tailrun …`."""

import os
import signal
import sys

if os.getpid() == 1:
    # A container's first process has no default action: a SIGTERM while we import would be lost.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

from app.cli import main

if __name__ == "__main__":
    main()
