"""Files that are written whole or not at all, and what stands for their contents."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rm_plugins.errors import OutputError

_ADVICE = "Name another place, or check the permissions and the free space of this one."


@contextmanager
def output_errors(path: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Raise what the system says against writing `path` as an `OutputError`, whose message ends with an advice."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error


def check_output(path: Path, *, is_folder: bool = False) -> None:
    """Refuse a place that cannot be written, before any work is done for it; the folder that it lies in is made.

    Raises:
        OutputError: There is something of another kind, or the system does not let a file be made there.
    """
    with output_errors(path):
        is_there = path.exists() or path.is_symlink()
        if path.is_dir() and not is_folder:
            raise OutputError(f"{path} is a folder; name the file to write, such as {path / 'output'}.")
        if is_there and not (path.is_dir() if is_folder else path.is_file()):
            raise OutputError(f"{path} is not a {'folder' if is_folder else 'regular file'}. Name another place.")
        _temporary(path / "file" if is_folder and is_there else path).unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary name beside `path`, which takes its place when the block ends and is gone if it fails.

    Args:
        path: The file to write; its folder is made if need be.

    Raises:
        OutputError: It cannot be written.
    """
    with output_errors(path):
        temporary = _temporary(path)
        try:
            yield temporary
            temporary.chmod(0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _temporary(path: Path) -> Path:
    """An empty file beside `path`, in whose name it has its own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # which says less than what it means
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    return Path(name)


def write_atomically(path: Path, text: str) -> Path:
    """Write a text file; returns its path.

    Half a surrogate pair, which is no character, is written as JSON and Python escape it.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(in_utf8(text), encoding="utf-8")
    return path


def in_utf8(text: str) -> str:
    r"""A text as it can be encoded: half a surrogate pair becomes its escape, which in JSON means the same.

    >>> in_utf8("\ud83d, 🙂")
    '\\ud83d, 🙂'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def with_digests(value: Any) -> Any:
    """A setting with the SHA-256 of files in place of their absolute paths, however deep they are in it."""
    if isinstance(value, Mapping):
        return {key: with_digests(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_digests(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value) and os.path.isfile(value):
        with open(value, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return value
