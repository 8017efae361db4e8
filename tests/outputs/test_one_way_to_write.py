"""The one way in which files are written: whole or not at all, with their permissions, beside nothing that is left over."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rm_plugins import files
from rm_plugins.errors import OutputError
from rm_plugins.files import (
    check_output,
    is_stream,
    replacing,
    replacing_folder,
    scratch_file,
    scratch_folder,
    would_replace,
    write_atomically,
)

Run = Callable[..., Result]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask() -> Iterator[Callable[[int], object]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# --- Permissions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002, 0o000])
def test_what_is_new_has_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: Any, mask: int) -> None:
    umask(mask)
    assert mode(write_atomically(tmp_path / "new.json", "{}")) == 0o666 & ~mask
    with replacing_folder(tmp_path / "model") as folder:
        (folder / "config.json").touch()
    assert mode(tmp_path / "model") == 0o777 & ~mask


@pytest.mark.parametrize("before", [0o600, 0o640, 0o664, 0o444])
def test_what_is_replaced_keeps_its_permissions(tmp_path: Path, umask: Any, before: int) -> None:
    path = tmp_path / "old.json"
    path.touch()
    path.chmod(before)
    assert mode(write_atomically(path, "{}")) == before
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").touch()
    folder.chmod(before | 0o700)
    with replacing_folder(folder) as new:
        (new / "weights").touch()
    assert (mode(folder), os.listdir(folder)) == (before | 0o700, ["weights"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_replaces_stays_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.touch()
    os.chown(path, 1234, 1234)
    write_atomically(path, "{}")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)


def test_nobody_else_reads_what_is_being_written(tmp_path: Path, umask: Any) -> None:
    umask(0)
    with replacing(tmp_path / "secret.json") as temporary:
        assert mode(temporary) == 0o600


# --- On the disk ----------------------------------------------------------------------------------------------------------


def test_it_is_on_the_disk_before_it_takes_its_place_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"file of {os.fstat(handle).st_size}")
        fsync(handle)

    def replaced(source: Any, target: Any) -> None:
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_atomically(tmp_path / "file.json", "text")
    assert done == ["file of 4", "renamed", "folder"]
    done.clear()
    with replacing_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("12345")
    assert done == ["folder", "file of 5", "renamed", "folder"]


# --- What is no regular file ----------------------------------------------------------------------------------------------


def read_in_background(fifo: Path) -> tuple[threading.Thread, list[bytes]]:
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.append(fifo.read_bytes()), daemon=True)
    thread.start()
    return thread, read


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    check_output(fifo)
    assert is_stream(fifo) and not would_replace(fifo)
    thread, read = read_in_background(fifo)
    write_atomically(fifo, "text")
    thread.join(30)
    assert read == [b"text"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_failure_writes_nothing_into_a_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ZeroDivisionError), replacing(fifo) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (("score", "rules:length", "in.jsonl", "-o"), "out.jsonl"),
        (("score", "rules:length", "in.jsonl", "-o"), "out.parquet"),
        (("rank", "rules:length", "in.jsonl", "-o"), "out.jsonl"),
        (("rank", "rules:length", "in.jsonl", "--curve"), "curve.json"),
        (("evaluate", "rules:length", "in.jsonl", "-o"), "out.json"),
        (("calibrate", "rules:length", "in.jsonl", "-o"), "out.yaml"),
        (("report", "journal", "-o"), "out.html"),
    ],
)
def test_every_command_writes_into_a_pipe(run: Run, arguments: tuple[str, ...], out: str) -> None:
    os.mkfifo(out)
    thread, read = read_in_background(Path(out))
    told = run(*arguments, out)
    assert told.exit_code == 0, told.output
    thread.join(30)
    assert stat.S_ISFIFO(Path(out).stat().st_mode)
    Path(out).unlink()
    assert run(*arguments, out, *(["--overwrite"] if "--curve" in arguments else [])).exit_code == 0
    undated = [re.sub(rb'"created": "[^"]*"', b"", text) for text in (*read, Path(out).read_bytes())]
    assert undated[:-1] == undated[-1:]


PROGRAM = (
    "import sys; from pathlib import Path; from rm_plugins.files import write_atomically as w; w(Path(sys.argv[1]), 'new')"
)


def program(*arguments: str, code: str = PROGRAM, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=False, **settings)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are in /proc on Linux")
@pytest.mark.parametrize("name", ["stdout", "link", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("flags", ["w", "a"])
def test_standard_output_is_written_to_wherever_it_goes(tmp_path: Path, name: str, flags: str) -> None:
    # Links as /dev/stdout is one: that one itself, root could replace if this failed.
    links = tmp_path / "links"
    links.mkdir()
    (links / "stdout").symlink_to("/proc/self/fd/1")
    (links / "link").symlink_to("stdout")
    name = name if name.startswith("/") else str(links / name)
    place = tmp_path / "file"
    place.write_text("old ")
    with place.open(flags) as file:
        assert program(name, stdout=file).returncode == 0
    assert place.read_text() == ("new" if flags == "w" else "old new")
    assert program(name, stdout=subprocess.PIPE).stdout == b"new"
    assert is_stream(Path("/dev/stdout"))
    assert all((links / link).is_symlink() for link in ("stdout", "link"))
    assert sorted(os.listdir(tmp_path)) == ["file", "links"]


def test_a_device_is_written_to(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    check_output(link)
    write_atomically(link, "text")
    assert link.is_symlink() and Path("/dev/null").is_char_device()


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("somebody's")
    (tmp_path / "link").symlink_to("other")
    write_atomically(tmp_path / "link", "new")
    assert ((tmp_path / "other").read_text(), (tmp_path / "link").read_text()) == ("somebody's", "new")


# --- Leftovers ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from rm_plugins.files import replacing, replacing_folder, scratch_file

with (replacing_folder if sys.argv[2] == "folder" else replacing)(Path(sys.argv[1])) as new:
    (new / "weights" if new.is_dir() else new).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path: Path, kind: str) -> None:
    assert program(str(tmp_path / "out"), kind, code=KILLED).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert files._TEMPORARY_NAMES.fullmatch(left.name)
    check_output(tmp_path / "another")
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as first, scratch_folder(tmp_path, "b") as folder, replacing(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
        for _ in range(3):
            check_output(tmp_path / "a")
        assert folder.is_dir() and first != second
    assert (tmp_path / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "name", [".rm-plugins", ".notes.rm-plugins", ".a.abcdefgh.rm-plugins.d/x", "a.abcdefgh.rm-plugins", ".cache.rm-plugins-2"]
)
def test_somebody_elses_file_is_no_leftover(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    if "/" in name:
        (tmp_path / ".a.abcdefgh.rm-plugins").symlink_to(path.parent)
    write_atomically(tmp_path / "out", "text")
    assert path.exists()


def test_many_writers_of_one_file_disturb_nobody(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                write_atomically(tmp_path / "out", str(number) * 1000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(set((tmp_path / "out").read_text())) == 1
    assert os.listdir(tmp_path) == ["out"]


def test_a_long_name_has_a_temporary_too(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        assert write_atomically(tmp_path / name, "text").read_text() == "text"


def test_scratch_files_are_gone_after_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_file("rows", ".jsonl") as path:
        assert path.parent == tmp_path and path.suffix == ".jsonl"
    assert list(tmp_path.iterdir()) == []


# --- Folders --------------------------------------------------------------------------------------------------------------


def model(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "weights").write_text(content)
    return folder


def exchange_is_unknown(*_: Any) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_there_is_a_folder_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = model(tmp_path / "out", "old")
    stop = threading.Event()
    missing: list[str] = []

    def look() -> None:
        while not stop.is_set():
            try:
                (out / "weights").read_text()
            except FileNotFoundError as error:
                if not out.exists():
                    missing.append(str(error))

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(50):
        with replacing_folder(out) as new:
            (new / "weights").write_text(str(number))
    stop.set()
    thread.join()
    assert missing == []
    assert (out / "weights").read_text() == "49"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", exchange_is_unknown)
    out = model(tmp_path / "out", "old")
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(ZeroDivisionError), replacing_folder(out) as new:
        raise ZeroDivisionError
    assert (out / "weights").read_text() == "old"
    with replacing_folder(tmp_path / "link") as new:
        (new / "weights").write_text("new")
    assert (out / "weights").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]


def test_a_folder_that_was_set_aside_when_the_process_was_killed_is_put_back(tmp_path: Path) -> None:
    out = model(tmp_path / "out", "old")
    killed = """
import os, signal, sys
from pathlib import Path
from rm_plugins import files

def unknown(*_):
    raise OSError(22, "Invalid argument")

replace = os.replace

def killed(source, target):
    if Path(source).name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

files._exchange, os.replace = unknown, killed
with files.replacing_folder(Path(sys.argv[1])) as new:
    (new / "weights").write_text("new")
"""
    assert program(str(out), code=killed).returncode == -signal.SIGKILL
    assert not out.exists()
    check_output(out, is_folder=True)
    assert (out / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_that_cannot_take_its_place_is_refused_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = model(tmp_path / "out", "old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "_exchange", full)
    with pytest.raises(OutputError, match="out cannot be written: No space left on device"), replacing_folder(out) as new:
        (new / "weights").write_text("new")
    assert (out / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]
