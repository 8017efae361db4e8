"""Code in a checkpoint runs where a setting allows it, and nobody is asked on standard input."""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import rm_plugins as rm
from rm_plugins.cli import main
from rm_plugins.errors import ModelError
from rm_plugins.generation.generator import Sampling
from rm_plugins.generation.transformers_generator import TransformersGenerator
from rm_plugins.models.model_folder import load_config, load_tokenizer
from rm_plugins.models.trained_rendering import load_renderer
from tests.coded_checkpoints import with_model_code, with_tokenizer_code
from tests.conftest import MakeFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who says yes to whatever is asked."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


def checked(folder: Path, *options: str) -> Any:
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Q", "chosen": "a", "rejected": "b"}) + "\n")
    found = CliRunner().invoke(main, ["data", "check", str(rows), "--tokenizer", str(folder), *options], input="y\n")
    if found.exit_code:
        raise ModelError(found.output)
    return found


def policy(folder: Path) -> None:
    TransformersGenerator(str(folder), Sampling(n=1)).close()


def length(folder: Path) -> None:
    rm.load({"provider": "length-window", "unit": "tokens", "high": 3, "tokenizer": str(folder)})


WAYS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a reward": (lambda folder: rm.load(str(folder)), "trust_remote_code: true"),
    "a policy": (policy, "--engine-options"),
    "data check": (checked, "--trust-remote-code"),
    "length-window": (length, "trust_remote_code: true"),
    "a client's tokenizer": (lambda folder: load_renderer(str(folder), {}), "no setting"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_tokenizer_with_code_is_refused(way: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    load, setting = WAYS[way]
    folder = with_tokenizer_code(tiny_decoder(), tmp_path / "ran")
    if way == "a reward":
        spec = {"provider": "sequence-classifier", "model": str(tiny_decoder()), "tokenizer": str(folder)}
        load = lambda _: rm.load(spec)  # noqa: E731
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert setting in str(caught.value)
    assert "custom code" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("length-window", "a client's tokenizer")])
def test_a_model_with_code_is_refused(way: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    load, setting = WAYS[way]
    with pytest.raises(ModelError) as caught:
        load(with_model_code(tiny_decoder(), tmp_path / "ran"))
    assert setting in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_the_setting_lets_a_tokenizer_run(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    load_tokenizer([str(with_tokenizer_code(tiny_decoder(), tmp_path / "ran"))], "a model", trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_the_setting_lets_a_configuration_run(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    load_config(str(with_model_code(tiny_decoder(), tmp_path / "ran")), trust_remote_code=True)
    assert (tmp_path / "ran").exists()


def test_a_flag_allows_it(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    checked(with_tokenizer_code(tiny_decoder(), tmp_path / "ran"), "--trust-remote-code")
    assert (tmp_path / "ran").exists()


def test_pickled_weights_are_not_loaded(tiny_decoder: MakeFolder) -> None:
    import torch
    from safetensors.torch import load_file

    folder = tiny_decoder()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        rm.load(str(folder))


def test_every_load_says_whether_code_may_run() -> None:
    """`from_pretrained` and `from_config` of transformers' automatic classes, wherever they are called."""
    silent = []
    for file in sorted([*(ROOT / "rm_plugins").rglob("*.py"), *(ROOT / "integrations").rglob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called, holder = node.func.attr, ast.unparse(node.func.value)
            if called in ("from_pretrained", "from_config") and holder.rpartition(".")[2].startswith("Auto"):
                names = {keyword.arg for keyword in node.keywords}
                if not names & {"trust_remote_code", None}:
                    silent.append(str(file.relative_to(ROOT)))
    assert not silent
