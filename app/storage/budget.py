"""The limits of one workspace, applied to a listing of it: what still fits, and where.

Both stores ask the same questions before they keep a file, so the answers (and their
messages) are here: is the file too big, is the run's room used up, are there too many
files, is a folder in the way.
"""

from __future__ import annotations

from collections.abc import Iterable

from app.errors import Conflict, TooLarge
from app.paths import parents
from app.storage.workspace import FileInfo, Limits


class Budget:
    """What a workspace holds, and what may still go into it. Sizes in bytes."""

    def __init__(self, limits: Limits, files: Iterable[FileInfo]) -> None:
        self._limits = limits
        self._sizes = {file.path: file.size for file in files}
        self._total = sum(self._sizes.values())
        self._folders = {folder for path in self._sizes for folder in parents(path)}

    def __contains__(self, path: str) -> bool:
        return path in self._sizes

    def room(self, path: str) -> int:
        """Return how large the file at `path` may be.

        Raises:
            TooLarge: it would be one file too many, or the run's room is used up.
            Conflict: `path` is a folder, or one of its folders is a file.
        """
        self._check_place(path)
        if path not in self._sizes and len(self._sizes) >= self._limits.files:
            raise TooLarge(
                f"{path}: a run keeps at most {self._limits.files} files (WORKSPACE_MAX_FILES); "
                "delete some, or pack them into one."
            )
        left = self._limits.total_bytes - self._total + self._sizes.get(path, 0)
        return max(0, min(self._limits.file_bytes, left))

    def take(self, path: str, size: int) -> None:
        """Count a file of `size` bytes as kept at `path`; raises as `room`, and if it is too big."""
        room = self.room(path)
        if size > room:
            raise self.too_large(path, room)
        self._total += size - self._sizes.get(path, 0)
        self._sizes[path] = size
        self._folders.update(parents(path))

    def release(self, paths: Iterable[str]) -> None:
        """Count the files at `paths` as removed."""
        self._total -= sum(self._sizes.pop(path, 0) for path in paths)
        self._folders = {folder for kept in self._sizes for folder in parents(kept)}

    def too_large(self, path: str, room: int) -> TooLarge:
        """Return the error of a file that does not fit into its `room`."""
        if room == self._limits.file_bytes:
            limit = f"{room} bytes for one file (FILE_MAX_BYTES)"
        else:
            limit = f"{self._limits.total_bytes} bytes for all files of a run (WORKSPACE_MAX_BYTES)"
        return TooLarge(f"{path}: over the limit of {limit}.")

    def _check_place(self, path: str) -> None:
        if path in self._folders:
            raise folder_in_the_way(path)
        for folder in parents(path):
            if folder in self._sizes:
                raise file_in_the_way(path, folder)


def folder_in_the_way(path: str) -> Conflict:
    """Return the error of a file that is to stand where a folder is."""
    return Conflict(f"{path} is a folder; choose another name, or delete what is in it.")


def file_in_the_way(path: str, folder: str) -> Conflict:
    """Return the error of a path that leads through a file."""
    return Conflict(f"{folder} is a file, so {path} can't be inside it.")
