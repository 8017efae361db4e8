"""Atomic writing of files and folders, and digests of file contents. All output of this package is written through this module.

A file is written under a temporary name in the same folder, synced to disk, and renamed. If the process is killed on the way, the old
file or the new one remains, and at most a temporary file ``.NAME.XXXXXXXX.rm-plugins``. The next process that writes into the folder
removes it: a temporary file is locked while its process lives, so an unlocked one is a leftover. Pipes and devices cannot be replaced
and are written to directly.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rm_plugins.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where temporaries of killed processes stay
    fcntl = None  # type: ignore[assignment]

_ADVICE = "Name another place, or check the permissions and the free space of this one."
_TEMPORARY = ".rm-plugins"
"""The suffix of temporary names."""
_TEMPORARY_NAMES = re.compile(r"\..*\.[a-z0-9_]{8}\.rm-plugins(\.jsonl)?", re.DOTALL)
_NAME_BYTES = 100
"""Bytes of a file's name that its temporary name repeats, so that the temporary name is not too long."""
_SET_ASIDE = "replaced"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_EXCHANGE = 2
_HERE = -100
_OPEN_FILES = re.compile(r"/proc/\d+(/task/\d+)?/fd")


@contextmanager
def output_errors(path: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Turn an `OSError` raised while writing `path` into an `OutputError` whose message ends with `advice`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}. {advice}") from error


def check_output(path: Path, *, is_folder: bool = False) -> None:
    """Check that `path` can be written, before any work is done for it; creates its parent folder.

    Raises:
        OutputError: Something of another kind is at `path`, or the system does not allow writing there.
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
    """Check that the file beside an output from which a run would resume is a regular file of its own.

    Raises:
        OutputError: It is a link or has a second name, so that another file would be written, or it is not a regular file.
    """
    with output_errors(path):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFREG: "a file with a second name (a hard link)"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise OutputError(
            f"{path} is {kind}, but the name is needed for the file that an interrupted run resumes from. Move it away, or name "
            "another output."
        )


def is_stream(path: Path) -> bool:
    """Whether `path` is a pipe, a device such as a terminal, or an open file such as ``/dev/stdout``. These are never replaced."""
    step = path
    for _ in range(40):  # the number of links that the system follows
        folder = os.path.realpath(step.parent)
        if _OPEN_FILES.fullmatch(folder) and step.exists():
            return True
        if not step.is_symlink():
            break
        step = Path(folder) / os.readlink(step)
    mode = _mode(path)
    return mode is not None and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))


def would_replace(path: Path) -> bool:
    """Whether writing `path` would replace something."""
    return path.exists() and not is_stream(path)


# --- Writing --------------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; it replaces `path` when the block ends and is deleted if the block fails.

    The new file has the owner and the permissions of the one that it replaces, or else those that the umask allows. A link at `path` is
    replaced; its target is unchanged. If `path` is a pipe or device, the contents are copied to it when the block ends.

    Args:
        path: The file to write; its folder is created if it does not exist.

    Raises:
        OutputError: The file cannot be written.
    """
    with output_errors(path):
        if is_stream(path):
            with scratch_file("output-") as temporary:
                yield temporary
                _copy_to_stream(temporary, path)
            return
        with _temporary_file(path) as temporary:
            yield temporary
            _allow(temporary, path, 0o666)
            _sync(temporary)
            os.replace(temporary, path)
            sync_folder(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; it replaces the folder `path` when the block ends and is deleted if the block fails.

    Where the system supports it, the two folders are exchanged in one step. Elsewhere it takes two steps: if the process is killed
    between them, the next process that writes into the parent folder restores the old folder. A link to a folder remains a link.

    Raises:
        OutputError: The folder cannot be written.
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
    """Write a text file atomically; returns its path.

    Lone surrogates, which UTF-8 cannot encode, are written as escapes (see `in_utf8`).

    Raises:
        OutputError: The file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(in_utf8(text), encoding="utf-8")
    return path


def write_shared(path: Path, text: str, advice: str = _ADVICE) -> None:
    """Write a text file atomically into a folder in which processes of several machines write, and which must exist.

    No lock is used, since those of a machine are unknown to the others. Where two processes write the same file, one of the two texts
    remains. A process that is killed leaves a file ``.NAME.XXXXXXXX.unfinished``, which is deleted with the folder.

    Args:
        path: The file.
        text: Its contents.
        advice: What the message of an error ends with.

    Raises:
        OutputError: The file cannot be written.
    """
    with output_errors(path, advice):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{_short(path.name)}.", suffix=".unfinished")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            _allow(Path(name), path, 0o666)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def open_kept(path: Path, *, new: bool = False) -> int:
    """Open a file beside an output for reading and writing; returns its descriptor. Links are refused.

    Args:
        path: The file.
        new: Create the file; fails if it exists.
    """
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | _NO_LINK | (os.O_CREAT | os.O_EXCL if new else 0), 0o666)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk, where the system supports it."""
    with suppress(OSError):
        _sync(folder)


def _mode(path: Path) -> int | None:
    """The file mode of `path`; None if it does not exist. Other errors of the system, such as a name that is too long, are raised."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _allow(new: Path, old: Path, usual: int) -> None:
    """Give a new file or folder the owner and permissions of the one it replaces, or else the default permissions."""
    before = None if old.is_symlink() else old.stat() if old.exists() else None
    if before is None:
        umask = os.umask(0o077)
        os.umask(umask)
        new.chmod(usual & ~umask)
        return
    if hasattr(os, "chown"):
        with suppress(OSError):  # only root may change owners
            os.chown(new, before.st_uid, before.st_gid)
    new.chmod(stat.S_IMODE(before.st_mode))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _copy_to_stream(source: Path, stream: Path) -> None:
    """Copy a file to a pipe or device; if the stream is an open file, append to it."""
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
    """Exchange two folders in one step, with Linux's ``renameat2``."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))


# --- Temporaries ----------------------------------------------------------------------------------------------------------


@contextmanager
def scratch_file(name: str, suffix: str = "") -> Iterator[Path]:
    """An empty file in the system's temporary folder, used by this process only and deleted when the block ends."""
    folder = Path(tempfile.gettempdir())
    with _temporary(folder, lambda: _made_file(folder, name, suffix)) as path:
        yield path


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder inside another one, used by this process only and deleted when the block ends."""
    with _temporary(folder, lambda: _made_folder(folder, name)) as path:
        yield path


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """An empty temporary file beside `path`, named after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # its message does not say that a parent is not a folder
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
    with _temporary(path.parent, lambda: _made_file(path.parent, path.name)) as temporary:
        yield temporary


@contextmanager
def _temporary(folder: Path, make: Callable[[], Path]) -> Iterator[Path]:
    """The file or folder that `make` creates, locked while this process uses it and then deleted."""
    remove_leftovers(folder)
    path, handle = _locked(make)
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


def _locked(make: Callable[[], Path]) -> tuple[Path, int]:
    """The file or folder that `make` creates, and the descriptor that locks it; repeated if another process removed it as a leftover."""
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
    """Delete the temporary files that ended processes left in a folder, and restore folders that they had set aside."""
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _TEMPORARY_NAMES.fullmatch(entry.name)]
    for name in names:
        path = folder / name
        with suppress(OSError):  # it belongs to another user, is already gone, or is locked by its process
            handle = os.open(path, os.O_RDONLY | _NO_LINK | os.O_NONBLOCK)
            try:
                if os.fstat(handle).st_uid != os.geteuid():
                    continue
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                set_aside = path / _SET_ASIDE
                for replaced in set_aside.iterdir() if set_aside.is_dir() else ():
                    if not (folder / replaced.name).exists():
                        os.replace(replaced, folder / replaced.name)
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
    r"""A text that UTF-8 can encode: a lone surrogate becomes its escape, which means the same in JSON.

    >>> in_utf8("\ud83d, 🙂")
    '\\ud83d, 🙂'
    """
    return text.encode("utf-8", "backslashreplace").decode()
