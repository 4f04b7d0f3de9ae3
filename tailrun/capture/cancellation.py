"""A request to stop, which any thread may make and the running code can check."""

from __future__ import annotations

import threading
from collections.abc import Callable


class StopSignal(Exception):
    """The work was asked to stop."""


class CancellationToken:
    """Set once, for good. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._callbacks: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Ask to stop; later calls change nothing."""
        with self._lock:
            if self._cancelled:
                return
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def is_cancelled(self) -> bool:
        """Whether a stop was requested."""
        return self._cancelled

    def throw_if_cancelled(self) -> None:
        """Raise `StopSignal` if a stop was requested."""
        if self._cancelled:
            raise StopSignal("cancelled")

    def on_cancel(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` in the thread that cancels, at once if that was before; return what undoes it."""
        with self._lock:
            if not self._cancelled:
                self._callbacks.append(callback)
                return lambda: self._forget(callback)
        callback()
        return lambda: None

    def _forget(self, callback: Callable[[], None]) -> None:
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
