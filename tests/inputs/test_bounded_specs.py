"""A spec, a mapping or a schema that is no honest one is refused soon, with what it is and where."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.data.written_mapping import mapping_of
from rm_plugins.errors import ModelError, SpecError
from rm_plugins.named_rewards import SPEC_VARIABLE
from rm_plugins.spec import MOST_PROVIDERS
from rm_plugins.written_settings import MOST_BYTES, MOST_LEVELS, beyond_bounds, parsed_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))
TEXTS: dict[str, tuple[Any, str]] = {
    "aliases that double": (
        f"{LAUGHS}provider: constant\n",
        "more than 50,000 entries (counting repetitions by aliases), at line 14",
    ),
    "merged aliases that double": (f"{MERGED}provider: constant\n", "more than 50,000 entries"),
    "deep lists": ("provider: constant\nvalue: " + "[" * 100_000, f"{MOST_LEVELS} levels of nesting, at line 2"),
    "deep mappings": ("provider: constant\nvalue: " + "{a: " * 5_000, f"{MOST_LEVELS} levels of nesting, at line 2"),
    "blocks": ("\n".join(" " * n + "a:" for n in range(900)), f"{MOST_LEVELS} levels of nesting"),
    "digits": (f"provider: constant\nvalue: {'9' * 100_000}", "a number of 100,000 digits, at line 2"),
    "base 60": (f"provider: constant\nvalue: 1{':1' * 200_000}", "a number of 400,001 digits"),
    "hexadecimal": (
        f"provider: constant\nvalue: 0x{'f' * 500}",
        "value: must be a number of at most 64 bits; got one of 2,000 bits",
    ),
    "many bits": (f"provider: constant\nvalue: {10**40}", "value: must be a number of at most 64 bits; got one of 133 bits"),
    "large": ("# " + "x" * MOST_BYTES, "has more than 1,048,576 bytes"),
    "no text": (b"provider: \xff\n", "cannot be read: 'utf-8'"),
    "a date that is none": ("provider: constant\nvalue: 2026-99-99", "cannot be read: month"),
}


@contextmanager
def soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("text", TEXTS)
def test_a_spec_file_is_bounded(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = TEXTS[text]
    file = tmp_path / "reward.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv(SPEC_VARIABLE, str(file))
    with soon(), pytest.raises(SpecError) as caught:
        rm.load(str(file))
    assert message in str(caught.value)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 2_000
    if "64 bits" not in message:  # which is of one reward alone
        with soon(), pytest.raises(SpecError, match=r"reward\.yaml"):
            rm.load("helpful")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"provider": "constant", "value": ' + "9" * 10_000 + "}", '{"a": ' * 5_000, "{"]
)
def test_a_json_file_is_bounded(content: str, tmp_path: Path) -> None:
    (tmp_path / "reward.json").write_text(content)
    with soon(), pytest.raises(SpecError, match=r"reward\.json"):
        rm.load(str(tmp_path / "reward.json"))


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def a_device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a POSIX pipe")
@pytest.mark.parametrize("make", [a_pipe, a_device, a_folder])
def test_what_is_no_file_is_not_read(make: Callable[[Path], Path], tmp_path: Path) -> None:
    yaml, json = make(tmp_path / "a.yaml"), make(tmp_path / "a.json")
    kind = make.__name__.replace("_", " ")
    with soon(), pytest.raises(SpecError, match=f"{kind}(,| and) not a (readable )?file"):
        mapping_of([str(yaml)])
    with soon(), pytest.raises(SpecError, match=f"{kind}(,| and) not a (readable )?file"):
        rm.load({"provider": "json-schema", "schema": str(json)})
    if make is a_folder:
        with pytest.raises(ModelError, match="not a model folder"):
            rm.load(str(yaml))
    else:
        with soon(), pytest.raises(SpecError, match=f"{kind}(,| and) not a (readable )?file"):
            rm.load(str(yaml))


@pytest.mark.parametrize("text", ["x" * 300, "x" * 10**6, "a/" * 10**5, "a\0b", "./" + "x" * 300])
def test_a_long_name_is_no_spec(text: str) -> None:
    with soon(), pytest.raises(SpecError) as caught:
        rm.load(text)
    assert len(str(caught.value)) < 2_000


def test_files_that_double_are_bounded(tmp_path: Path) -> None:
    for number in range(30):
        inner = f"b{number + 1}.yaml"
        (tmp_path / f"b{number}.yaml").write_text(f"provider: sum\nmembers: [{inner}, {inner}]\n")
    (tmp_path / "b30.yaml").write_text("provider: constant\nvalue: 1.0\n")
    with soon(), pytest.raises(SpecError, match=f"more than {MOST_PROVIDERS:,} rewards"):
        rm.load(str(tmp_path / "b0.yaml"))


def test_a_chain_of_files_is_bounded(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"c{number}.yaml").write_text(f"provider: sum\nmembers: [c{number + 1}.yaml]\n")
    (tmp_path / "c500.yaml").write_text("provider: constant\nvalue: 1.0\n")
    with soon(), pytest.raises(SpecError, match="more than 50 files and names"):
        rm.load(str(tmp_path / "c0.yaml"))


def nested(levels: int) -> dict[str, Any]:
    spec: dict[str, Any] = {"provider": "constant", "value": 1.0}
    for _ in range(levels):
        spec = {"provider": "sum", "members": [spec]}
    return spec


def test_a_mapping_in_python_is_bounded() -> None:
    assert rm.load(nested(MOST_LEVELS // 4)).score([rm.Sample("Q", "A")]).values.tolist() == [1.0]
    with soon(), pytest.raises(SpecError, match=r"^members\[0\]\.members\[0\].*nested more than 100 levels deep"):
        rm.load(nested(10_000))
    with pytest.raises(SpecError, match=r"^members\[0\]\.value: must be a number of at most 64 bits"):
        rm.load({"provider": "sum", "members": [{"provider": "constant", "value": 10**400}]})
    with pytest.raises(SpecError, match=r"^high: must be a number of at most 64 bits"):
        rm.load("length-window", high=10**30)
    doubled: Any = []
    for _ in range(40):
        doubled = [doubled, doubled]
    with soon(), pytest.raises(SpecError, match="more than 50,000 entries"):
        rm.load({"provider": "constant", "value": doubled})


@pytest.mark.parametrize("text", [text for text in TEXTS.values() if isinstance(text[0], str)])
def test_a_mapping_of_rows_is_bounded(text: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "rows.map.yaml").write_text(text[0])
    with soon(), pytest.raises(SpecError):
        mapping_of([str(tmp_path / "rows.map.yaml")])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_ordinary_is_read_as_it_is_written(value: Any) -> None:
    import json

    import yaml

    assert beyond_bounds(value) is None
    assert parsed_yaml(yaml.safe_dump(value), "a text") == yaml.safe_load(yaml.safe_dump(value))
    assert parsed_yaml(json.dumps({"a": value}), "a text") == yaml.safe_load(json.dumps({"a": value}))
