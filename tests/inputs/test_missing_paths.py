"""What messages say about a path at which nothing is: where was looked, and what is there instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from rm_plugins.errors import DataError
from rm_plugins.missing_path import nearest_path, not_there


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "end"),
    [
        ("rows/trian.jsonl", " (looked for {here}/rows/trian.jsonl). Did you mean 'rows/train.jsonl'?"),
        ("row/train.jsonl", " (looked for {here}/row/train.jsonl). Did you mean 'rows/train.jsonl'?"),
        ("row/other.jsonl", " (looked for {here}/row/other.jsonl). The last folder of its path that exists is {here}. Check the path."),
        ("rows/other.jsonl", " (looked for {here}/rows/other.jsonl). Check the path."),
        ("../none", " (looked for {here.parent}/none). Check the path."),
        ("{here}/rows/other.jsonl", ". Check the path."),
        ("{here}/rows/trian.jsonl", ". Did you mean '{here}/rows/train.jsonl'?"),
        ("rows", " (looked for {here}/rows): it is a folder. Check the path."),
        ("rows/train.jsonl/", " (looked for {here}/rows/train.jsonl): it is a file. Check the path."),
        ("rows/train.jsonl/a", " (looked for {here}/rows/train.jsonl/a). "
         "The last folder of its path that exists is {here}/rows. Check the path."),
        ("x" * 5_000, " (looked for {here}/" + "x" * 5_000 + "). Check the path."),
    ],
)  # fmt: skip
def test_the_end_of_a_message(path: str, end: str, here: Path) -> None:
    assert not_there(Path(path.format(here=here))) == end.format(here=here)


def test_a_path_as_it_was_written(here: Path) -> None:
    assert not_there(here / "rows/a", "~/rows/a", advice="Make it.") == f" (looked for {here}/rows/a). Make it."


def test_the_nearest_path_exists(here: Path) -> None:
    assert nearest_path(Path("row")) == Path("rows")
    assert nearest_path(Path("row/none.jsonl")) is None
    assert nearest_path(Path("/")) is None


def test_a_reader_names_it(here: Path) -> None:
    from rm_plugins.data.row_files import read_rows

    with pytest.raises(
        DataError, match=r"There is no file 'rows/trian\.jsonl' \(looked for .*\)\. Did you mean 'rows/train\.jsonl'\?"
    ):
        list(read_rows("rows/trian.jsonl"))
