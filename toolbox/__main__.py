"""`python -m toolbox exec -- argv… | sync | ready`; what is not asked for is not imported."""

from __future__ import annotations

import os
import sys

_USAGE = "usage: toolbox exec -- program [argument …] | toolbox sync | toolbox ready"
_WRONG_USE = 125


def main() -> int:
    """Run the command of the arguments; return the exit code."""
    match sys.argv[1:]:
        case ["exec", "--", program, *arguments]:
            from toolbox.settings import ToolboxSettings  # noqa: PLC0415
            from toolbox.wrapper import Wrapper  # noqa: PLC0415

            return Wrapper([program, *arguments], ToolboxSettings(dict(os.environ))).run()
        case ["sync"]:
            from toolbox.sync import main as sync  # noqa: PLC0415 - costs 60 ms

            return sync()
        case ["ready"]:
            return 0 if os.access(os.environ.get("TOOLBOX_WAIT") or "/tailrun/ready", os.F_OK) else 1
        case _:
            sys.stderr.write(_USAGE + "\n")
            return _WRONG_USE


if __name__ == "__main__":
    sys.exit(main())
