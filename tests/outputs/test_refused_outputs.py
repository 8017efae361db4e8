"""An output that cannot be written is an error of ours, before anything is scored for it."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import rm_plugins as rm
from rm_plugins.errors import OutputError, SpecError
from rm_plugins.files import check_output, replacing, write_atomically
from rm_plugins.models.merge import merge_models
from rm_plugins.training.journal import Journal
from tests.outputs.conftest import scored

Run = Callable[..., Result]

FILES: dict[str, tuple[str, ...]] = {
    "score -o .jsonl": ("score", "rules:length", "in.jsonl", "-o"),
    "score -o .parquet": ("score", "rules:length", "in.jsonl", "-o"),
    "rank -o .jsonl": ("rank", "rules:length", "in.jsonl", "-o"),
    "rank --curve .json": ("rank", "rules:length", "in.jsonl", "--curve"),
    "rank --curve .html": ("rank", "rules:length", "in.jsonl", "--curve"),
    "rank --keep-completions .jsonl": (
        *("rank", "rules:length", "in.jsonl", "--generate", "no-policy", "--n", "2", "--keep-completions"),
    ),
    "evaluate -o .json": ("evaluate", "rules:length", "in.jsonl", "-o"),
    "evaluate --report .html": ("evaluate", "rules:length", "in.jsonl", "--report"),
    "diff -o .json": ("diff", "rules:length", "rules:length", "in.jsonl", "-o"),
    "diff --report .html": ("diff", "rules:length", "rules:length", "in.jsonl", "--report"),
    "calibrate -o .yaml": ("calibrate", "rules:length", "in.jsonl", "-o"),
    "report -o .html": ("report", "journal", "-o"),
}
FOLDERS: dict[str, tuple[str, ...]] = {
    "evaluate --scores": ("evaluate", "rules:length", "in.jsonl", "--scores"),
    "diff --scores": ("diff", "rules:length", "rules:length", "in.jsonl", "--scores"),
    "merge -o": ("merge", "a", "b", "-o"),
    "judge-data -o": ("judge-data", "in.jsonl", "-o"),
    "demo --output-dir": ("demo", "--output-dir"),
}


def refused_places(ending: str, *, is_folder: bool) -> dict[str, str]:
    """Places at which nothing can be written, whoever asks."""
    Path("blocked").touch()
    Path(f"folder{ending}").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"socket{ending}")
    other = {"a file": "blocked"} if is_folder else {"a folder": f"folder{ending}"}
    return {
        **other,
        "in a file": f"blocked/out{ending}",
        "deep in a file": f"blocked/a/b/out{ending}",
        "a socket": f"socket{ending}",
        "of the system": f"/proc/out{ending}",
        "a name that is too long": f"{'x' * 300}{ending}",
        "a folder whose name is too long": f"{'x' * 300}/out{ending}",
        "denied": f"denied/out{ending}",
        "read-only": f"read-only/out{ending}",
        "full": f"full/out{ending}",
    }


def system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have folders of these names refuse every file, which would not stop root."""
    numbers = {"denied": errno.EACCES, "read-only": errno.EROFS, "full": errno.ENOSPC}
    make: Callable[..., Any] = tempfile.mkstemp

    def mkstemp(*arguments: Any, dir: Any = None, **settings: Any) -> Any:
        if (number := numbers.get(Path(dir).name if dir is not None else "")) is not None:
            raise OSError(number, os.strerror(number), str(dir))
        return make(*arguments, dir=dir, **settings)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


def is_refused(told: Result, place: str) -> None:
    assert isinstance(told.exception, SystemExit), told.exc_info
    assert told.exit_code in (1, 2), told.output
    assert told.output.startswith(("Error: ", "Usage: ")), told.output
    assert "Traceback" not in told.output
    assert place in told.output
    assert scored() == 0


@pytest.mark.parametrize("option", FILES)
def test_a_file_that_cannot_be_written_is_refused_before_scoring(
    run: Run, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_refuses(monkeypatch)
    places = refused_places(f".{option.rpartition('.')[2]}", is_folder=False)
    for place in places.values():
        told = run(*FILES[option], place)
        is_refused(told, place)
        assert "cannot be written" in told.output or "is a folder" in told.output or "is not a regular file" in told.output
    is_refused(run(*FILES[option], ""), "")


@pytest.mark.parametrize("option", FOLDERS)
def test_a_folder_that_cannot_be_written_is_refused_before_scoring(
    run: Run, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system_refuses(monkeypatch)
    for place in refused_places("", is_folder=True).values():
        is_refused(run(*FOLDERS[option], place), place)


def test_a_report_on_nothing_makes_nothing(run: Run) -> None:
    assert "There is no journal in 'nowhere'" in run("report", "nowhere").output
    assert not Path("nowhere").exists()


def test_a_name_that_leaves_no_room_for_what_is_kept_beside_it_is_refused_before_scoring(run: Run) -> None:
    for length in range(225, 256):
        name = f"{'x' * (length - 6)}.jsonl"
        for command in (("score", "rules:length", "in.jsonl", "-o"), ("rank", "rules:length", "in.jsonl", "-o")):
            told = run(*command, name)
            if told.exit_code:
                assert scored() == 0, (length, command)
                is_refused(told, name)
            else:
                assert Path(name).is_file()
                Path(name).unlink()
                rules = __import__("rules")
                rules.calls.clear()


def test_a_card_that_cannot_be_written_is_refused_before_scoring(run: Run, tiny_decoder: Callable[[], Path]) -> None:
    folder = tiny_decoder()
    (folder / "README.md").mkdir()
    is_refused(run("evaluate", folder, "in.jsonl", "--card"), "README.md is a folder")


def test_the_output_beside_a_file_in_a_read_only_folder_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    system_refuses(monkeypatch)
    Path("read-only").mkdir()
    Path("in.jsonl").rename("read-only/in.jsonl")
    is_refused(run("score", "rules:length", "read-only/in.jsonl"), "Read-only file system")
    is_refused(run("rank", "rules:length", "read-only/in.jsonl"), "Read-only file system")


def test_what_python_writes_is_refused_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system_refuses(monkeypatch)
    for place in map(Path, refused_places(".x", is_folder=False).values()):
        with pytest.raises(OutputError):
            check_output(place)
        if place.name == "socket.x":
            continue
        with pytest.raises(OSError, match="cannot be written"):
            write_atomically(place, "text")
        with pytest.raises(OutputError), replacing(place):
            pass
    for place in map(Path, ["blocked", "blocked/journal", "denied/journal", "/proc/journal"]):
        with pytest.raises(OutputError):
            Journal(place).resume(0)
        with pytest.raises(OutputError):
            merge_models(["a", "b"], place)
    for place in map(Path, ["folder.x", "blocked/cache"]):
        with pytest.raises(SpecError, match=r"^path: "):
            rm.load({"provider": "cached", "reward": {"provider": "constant", "value": 1}, "path": str(place)})
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name.startswith(".")]


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "folder").mkdir()
    check_output(tmp_path / "old.json")
    check_output(tmp_path / "new.json")
    check_output(tmp_path / "folder", is_folder=True)
    check_output(tmp_path / "other", is_folder=True)
    assert sorted(os.listdir(tmp_path)) == ["folder", "old.json"]
    assert (tmp_path / "old.json").read_text() == "old"
    assert os.listdir(tmp_path / "folder") == []
