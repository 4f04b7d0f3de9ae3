"""A program that is given as text, in a file of its own while it runs.

The file lies outside of the workspace, so that tracebacks show its real line numbers and the
run's files stay the run's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from app.errors import ErrorCode, RunFailure
from app.execution.executor import Source
from app.private_files import private_folder


@contextmanager
def source_file(tmp_dir: Path, source: Source | None) -> Generator[str]:
    """Give out the path of a file that holds `source` ("" if there is none); gone at the end. Blocking."""
    if source is None:
        yield ""
        return
    try:
        private_folder(tmp_dir)
        folder = tempfile.TemporaryDirectory(prefix="code-", dir=tmp_dir, ignore_cleanup_errors=True)
    except OSError as error:
        raise _no_room(error) from error
    with folder:
        path = Path(folder.name, source.name)
        try:
            path.write_text(source.text, encoding="utf-8", newline="")
        except OSError as error:
            raise _no_room(error) from error
        yield str(path)


def _no_room(error: OSError) -> RunFailure:
    return RunFailure(ErrorCode.RESOURCE_LIMIT, f"the program could not be written to disk: {error.strerror}")
