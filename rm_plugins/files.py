"""The one way in which files are written: whole or not at all, and what stands for their contents.

What is written is made under a temporary name in the same folder, brought onto the disk, and renamed. Whatever kills the process on the
way leaves the old file or the new one, and at most a temporary, ``.NAME.XXXXXXXX.rm-plugins``, which whoever next writes into that folder
removes: its maker holds a lock on it for as long as it lives. Pipes and devices, which nothing can take the place of, are written to.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rm_plugins.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where temporaries of killed processes stay
    fcntl = None  # type: ignore[assignment]

_ADVICE = "Name another place, or check the permissions and the free space of this one."
_TEMPORARY = ".rm-plugins"
"""How the names of temporaries end."""
_TEMPORARY_NAMES = re.compile(r"\..*\.[a-z0-9_]{8}\.rm-plugins(\.jsonl)?", re.DOTALL)
_NAME_BYTES = 100
"""How much of a file's name is in that of its temporary, which is not to be too long where the file's own is not."""
_SET_ASIDE = "replaced"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_EXCHANGE = 2
_HERE = -100
_OPEN_FILES = re.compile(r"/proc/\d+(/task/\d+)?/fd")


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
        is_there = _mode(path) is not None or path.is_symlink()
        if path.is_dir() and not is_folder:
            raise OutputError(f"{path} is a folder; name the file to write, such as {path / 'output'}.")
        if not is_folder and is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return
        if is_there and not (path.is_dir() if is_folder else path.is_file()):
            raise OutputError(f"{path} is not a {'folder' if is_folder else 'regular file'}. Name another place.")
        with _temporary_file(path / "file" if is_folder and is_there else path):
            pass


def check_kept(path: Path) -> None:
    """Refuse a file beside an output that is to be gone on with, where something else has taken its name.

    Raises:
        OutputError: It is a link, or has another name elsewhere, so that another file would be written, or it is no regular file.
    """
    with output_errors(path):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFREG: "a file that has another name, too"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "not a regular file")
        raise OutputError(
            f"{path} is {kind}, where a file of an interrupted run would be. Move it away, or name another output."
        )


def is_stream(path: Path) -> bool:
    """Whether `path` is a pipe, a terminal or another device, or an open file such as ``/dev/stdout``, all of which are never replaced."""
    step = path
    for _ in range(40):  # as many links as the system follows
        folder = os.path.realpath(step.parent)
        if _OPEN_FILES.fullmatch(folder) and step.exists():
            return True
        if not step.is_symlink():
            break
        step = Path(folder) / os.readlink(step)
    mode = _mode(path)
    return mode is not None and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))


def would_replace(path: Path) -> bool:
    """Whether there is something that writing `path` would replace."""
    return path.exists() and not is_stream(path)


# --- Writing --------------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary name beside `path`, which takes its place when the block ends and is gone if it fails.

    The new file has the owner and the permissions of the one that it replaces, else those that the umask leaves. A link at `path` is
    replaced, and what it points to stays as it is. A pipe or device is given what was written when the block ends.

    Args:
        path: The file to write; its folder is made if need be.

    Raises:
        OutputError: It cannot be written.
    """
    with output_errors(path):
        if is_stream(path):
            with scratch_file("output-") as temporary:
                yield temporary
                _poured(temporary, path)
            return
        with _temporary_file(path) as temporary:
            yield temporary
            _allow(temporary, path, 0o666)
            _sync(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Lend an empty folder, which takes the place of the folder `path` when the block ends and is gone if it fails.

    Where the system can, both change their places in one step. Elsewhere the old one is put back by whoever next writes beside it, if
    the process is killed between the two. A link to a folder stays one.

    Raises:
        OutputError: It cannot be written.
    """
    place = Path(os.path.realpath(path))
    with output_errors(path), scratch_folder(place.parent, place.name) as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        _allow(folder, place, 0o777)
        for name in (folder, *folder.rglob("*")):
            _sync(name)
        _take_place(folder, place, scratch / _SET_ASIDE)
        sync_folder(place.parent)


def write_atomically(path: Path, text: str) -> Path:
    """Write a text file; returns its path.

    Half a surrogate pair, which is no character, is written as JSON and Python escape it.

    Raises:
        OutputError: It cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(in_utf8(text), encoding="utf-8")
    return path


def open_kept(path: Path, *, new: bool = False) -> int:
    """A descriptor to read and write a file beside an output with, which is no link; `new` makes it, and fails where it is."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | _NO_LINK | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder onto the disk, where the system can."""
    with suppress(OSError):
        _sync(folder)


def _mode(path: Path) -> int | None:
    """What kind of file there is; None where there is none. Raises whatever else the system says, such as of a name that is too long."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _allow(new: Path, old: Path, usual: int) -> None:
    """Give what is new the owner and permissions of what it replaces, or those that everything new has."""
    before = None if old.is_symlink() else old.stat() if old.exists() else None
    if before is None:
        umask = os.umask(0o077)
        os.umask(umask)
        new.chmod(usual & ~umask)
        return
    if hasattr(os, "chown"):
        with suppress(OSError):  # of root alone
            os.chown(new, before.st_uid, before.st_gid)
    new.chmod(stat.S_IMODE(before.st_mode))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _poured(source: Path, stream: Path) -> None:
    """Write a file to a pipe or device; behind what is there already, where that is a file."""
    with source.open("rb") as file, open(os.open(stream, os.O_WRONLY | os.O_APPEND), "wb") as target:
        shutil.copyfileobj(file, target)


def _take_place(folder: Path, place: Path, set_aside: Path) -> None:
    if not place.exists() or not any(place.iterdir()):
        os.replace(folder, place)
        return
    try:
        _exchange(folder, place)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        set_aside.mkdir()
        os.replace(place, set_aside / place.name)
        try:
            os.replace(folder, place)
        except BaseException:
            os.replace(set_aside / place.name, place)
            raise


def _exchange(first: Path, second: Path) -> None:
    """Have two folders change their places in one step, by Linux's ``renameat2``."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))


# --- Temporaries ----------------------------------------------------------------------------------------------------------


@contextmanager
def scratch_file(name: str, suffix: str = "") -> Iterator[Path]:
    """An empty file of this process alone, in the system's folder for temporaries, which is gone when the block ends."""
    folder = Path(tempfile.gettempdir())
    with _temporary(folder, lambda: _made_file(folder, name, suffix)) as path:
        yield path


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder of this process alone inside another one, which is gone when the block ends."""
    with _temporary(folder, lambda: _made_folder(folder, name)) as path:
        yield path


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path`, in whose name it has its own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # which says less than what it means
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
    with _temporary(path.parent, lambda: _made_file(path.parent, path.name)) as temporary:
        yield temporary


@contextmanager
def _temporary(folder: Path, make: Callable[[], Path]) -> Iterator[Path]:
    """What `make` makes in a folder, held by a lock for as long as this process uses it."""
    remove_leftovers(folder)
    path, handle = _held(make)
    try:
        yield path
    finally:
        _remove(path)
        os.close(handle)


def _made_file(folder: Path, name: str, suffix: str = "") -> Path:
    handle, path = tempfile.mkstemp(dir=folder, prefix=f".{_short(name)}.", suffix=f"{_TEMPORARY}{suffix}")
    os.close(handle)
    return Path(path)


def _made_folder(folder: Path, name: str) -> Path:
    return Path(tempfile.mkdtemp(dir=folder, prefix=f".{_short(name)}.", suffix=_TEMPORARY))


def _short(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_NAME_BYTES])


def _held(make: Callable[[], Path]) -> tuple[Path, int]:
    """What `make` makes and a descriptor that holds the lock on it; made again where another process took it for a leftover."""
    while True:
        path = make()
        try:
            handle = os.open(path, os.O_RDONLY | _NO_LINK)
        except FileNotFoundError:
            continue
        if fcntl is not None:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():
            return path, handle
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporaries that processes which are no more have left in a folder; folders that they had set aside are put back."""
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _TEMPORARY_NAMES.fullmatch(entry.name)]
    for name in names:
        path = folder / name
        with suppress(OSError):  # of another user, gone meanwhile, or held by its maker
            handle = os.open(path, os.O_RDONLY | _NO_LINK | os.O_NONBLOCK)
            try:
                if os.fstat(handle).st_uid != os.geteuid():
                    continue
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                set_aside = path / _SET_ASIDE
                for kept in set_aside.iterdir() if set_aside.is_dir() else ():
                    if not (folder / kept.name).exists():
                        os.replace(kept, folder / kept.name)
                _remove(path)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


# --- Contents -------------------------------------------------------------------------------------------------------------


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
