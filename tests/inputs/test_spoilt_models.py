"""What lies beside a model's weights may be giant or malformed, and is refused as what it is."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import ModelError, RmPluginsError
from rm_plugins.models.manifest import MANIFEST_NAME
from tests.conftest import MakeFolder

GIANT = "[" + "0," * (40 * 2**20)
JSON = [
    "",
    "[]",
    "3",
    "null",
    '"a"',
    "{",
    "[" * 100_000,
    '{"a": ' * 5_000,
    "\x00",
    '{"a": ' + "9" * 10_000 + "}",
    "{}",
    '{"model_type": 3}',
]
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", MANIFEST_NAME, "adapter_config.json"]


def refused(folder: Path) -> str:
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        rm.load(str(folder))
    assert time.monotonic() - started < 20
    assert len(str(caught.value)) < 2_000
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tiny_decoder: MakeFolder) -> Path:
    return tiny_decoder()


@pytest.mark.parametrize("content", JSON)
@pytest.mark.parametrize("name", FILES)
def test_a_malformed_file_is_refused(name: str, content: str, tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    (folder / name).write_text(content)
    if name == "tokenizer_config.json" and content.startswith("{"):
        with suppress(ModelError):
            rm.load(str(folder)).close()
    else:
        assert folder.name in refused(folder)


@pytest.mark.parametrize("name", ["config.json", MANIFEST_NAME, "adapter_config.json"])
def test_a_giant_file_is_refused(name: str, tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    (folder / name).write_text(GIANT)
    assert "bytes" in refused(folder)


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_text_is_refused(name: str, tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    (folder / name).write_bytes(b"\xff\xfe\x00{")
    refused(folder)


@pytest.mark.parametrize(
    ("announced", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1e+09; the limit is 10,000"),
        ({"num_labels": 10**9}, "num_labels is 1e+09; the limit is 1,000,000"),
        ({"text_config": {"n_layer": 10**9}}, "text_config.n_layer is 1e+09"),
        ({"hidden_size": 10**12}, ""),
        ({"vocab_size": 10**15}, ""),
        ({"hidden_size": "large"}, ""),
        ({"id2label": 3}, ""),
        ({"num_attention_heads": 0}, ""),
    ],
)
def test_a_configuration_that_asks_for_too_much_is_refused(
    announced: dict[str, Any], message: str, tiny_decoder: MakeFolder
) -> None:
    folder = tiny_decoder()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **announced}))
    assert message in refused(folder)


@pytest.mark.parametrize("base", [3, [], {}, None, "", "\x00", "x" * 100_000, "x" * 300, "../" * 1_000, {"a": 1}])
def test_an_adapter_of_no_base_is_refused(base: Any, tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    refused(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a POSIX pipe")
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_a_device_is_not_read(name: str, tiny_decoder: MakeFolder) -> None:
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        folder = tiny_decoder()
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        started = time.monotonic()
        with suppress(ModelError):
            rm.load(str(folder)).close()
        assert time.monotonic() - started < 20


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_value_of_a_configuration_is_any_other_error(data: st.DataObject, folder: Path) -> None:
    name = data.draw(st.sampled_from(["config.json", "tokenizer_config.json", MANIFEST_NAME]))
    path = folder / name
    before = path.read_bytes() if path.exists() else None
    content = {} if before is None else json.loads(before)
    content[data.draw(st.sampled_from([*content, "rendering"]))] = data.draw(VALUES)
    path.write_text(json.dumps(content))
    try:
        rm.load(str(folder)).close()
    except RmPluginsError:
        pass
    finally:
        path.unlink() if before is None else path.write_bytes(before)
