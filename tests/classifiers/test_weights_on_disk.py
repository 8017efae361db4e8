"""What becomes of a loaded model when somebody writes into its files: nothing."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import rm_plugins as rm
from rm_plugins.errors import ManifestError, ModelError
from rm_plugins.identity import fingerprint
from tests.cheap_ensembles.conftest import adapters_of, written
from tests.classifiers.conftest import SAMPLES
from tests.conftest import MakeFolder

MAPS = Path("/proc/self/maps")
SHARDS = {"sharded": "20KB"}
KINDS = ("decoder", "sharded", "encoder", "half", "adapter", "lora-ensemble", "mc-dropout")


@pytest.fixture
def make(tiny_decoder: MakeFolder, tiny_encoder: MakeFolder, tmp_path: Path) -> Callable[[str], tuple[Any, list[Path]]]:
    """Makes the spec of a trained model of a kind, and the folders that it is read from."""

    def spec(kind: str) -> tuple[Any, list[Path]]:
        folder = tiny_encoder() if kind in ("encoder", "mc-dropout") else tiny_decoder(max_shard_size=SHARDS.get(kind, "1GB"))
        if kind in ("adapter", "lora-ensemble"):
            adapters = adapters_of(folder, tmp_path, 2)
            if kind == "adapter":
                return adapters[0], [folder, Path(adapters[0])]
            return {"provider": kind, "adapters": adapters}, [folder, *map(Path, adapters)]
        more: dict[str, dict[str, Any]] = {
            "mc-dropout": {"provider": kind, "passes": 2},
            "half": {"provider": "sequence-classifier", "dtype": "float16"},
        }
        return ({"model": str(folder), **more[kind]} if kind in more else folder), [folder]

    return spec


def mappings() -> Iterator[range]:
    """The addresses at which this process sees files of weights."""
    for line in MAPS.read_text().splitlines():
        if line.endswith(".safetensors"):
            start, stop = line.split()[0].split("-")
            yield range(int(start, 16), int(stop, 16))


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")
@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_lies_in_a_file(kind: str, make: Callable[[str], tuple[Any, list[Path]]]) -> None:
    (held,) = rm.load(make(kind)[0]).models.values()
    mapped = [
        name for name, tensor in held.model.state_dict().items() if any(tensor.data_ptr() in pages for pages in mappings())
    ]
    assert mapped == []


@pytest.mark.parametrize("kind", KINDS)
def test_weights_written_over_change_nothing(kind: str, make: Callable[[str], tuple[Any, list[Path]]]) -> None:
    spec, folders = make(kind)
    reward = rm.load(spec)
    expected, name = reward.score(SAMPLES).values, fingerprint(reward)
    for file in [file for folder in folders for file in folder.glob("*.safetensors")]:
        size = file.stat().st_size
        with file.open("r+b") as opened:  # in place, as `cp` writes
            opened.seek(size // 2)
            opened.write(b"\x3f" * (size - size // 2))
    np.testing.assert_array_equal(reward.score(SAMPLES).values, expected)
    assert fingerprint(reward) == name


@hypothesis_settings(max_examples=25)
@given(damage=st.data())
def test_bytes_written_anywhere_change_nothing(damage: st.DataObject, tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    reward = rm.load(folder)
    expected = reward.score(SAMPLES).values
    (file,) = folder.glob("*.safetensors")
    start = damage.draw(st.integers(0, file.stat().st_size - 1))
    with file.open("r+b") as opened:
        opened.seek(start)
        opened.write(damage.draw(st.binary(min_size=1, max_size=256))[: file.stat().st_size - start])
    np.testing.assert_array_equal(reward.score(SAMPLES).values, expected)


def test_a_file_cut_short_does_not_end_the_process(tiny_decoder: MakeFolder) -> None:
    script = (
        "import os, sys\nimport rm_plugins as rm\nreward = rm.load(sys.argv[1])\nsample = rm.Sample('a', 'b')\n"
        "before = reward.score([sample]).values\nos.truncate(sys.argv[1] + '/model.safetensors', 0)\n"
        "assert (reward.score([sample]).values == before).all()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tiny_decoder())], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"it ended with {ended.returncode}: {ended.stderr}"


def change(file: Path) -> None:
    """Give a file of weights others of the same size, as a training does."""
    save_file({name: weight * 1.5 for name, weight in load_file(file).items()}, file, {"format": "pt"})


class TestPickled:
    """Another process loads the same reward, or none."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_the_same(self, kind: str, make: Callable[[str], tuple[Any, list[Path]]]) -> None:
        reward = rm.load(make(kind)[0])
        again = pickle.loads(pickle.dumps(reward))
        np.testing.assert_array_equal(again.score(SAMPLES).values, reward.score(SAMPLES).values)
        assert fingerprint(again) == fingerprint(reward)
        assert fingerprint(pickle.loads(pickle.dumps(again))) == fingerprint(reward)

    @pytest.mark.parametrize("kind", KINDS)
    def test_other_weights_are_refused(self, kind: str, make: Callable[[str], tuple[Any, list[Path]]]) -> None:
        spec, folders = make(kind)
        for folder in folders:
            pickled = pickle.dumps(rm.load(spec))
            change(next(folder.glob("*.safetensors")))
            with pytest.raises(ModelError, match="its weights changed after it was loaded in the first process"):
                pickle.loads(pickled)

    def test_what_a_manifest_refuses_is_refused(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        written(folder)
        reward = rm.load(folder)
        pickled, expected = pickle.dumps(reward), reward.score(SAMPLES).values
        change(folder / "model.safetensors")
        with pytest.raises(ManifestError):
            rm.load(folder)
        with pytest.raises(ModelError, match="its weights changed"):
            pickle.loads(pickled)
        np.testing.assert_array_equal(reward.score(SAMPLES).values, expected)

    @pytest.mark.parametrize("part", ["tokenizer", "template", "special tokens", "rendering"])
    def test_so_are_another_tokenizer_and_another_rendering(self, part: str, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        if part == "rendering":
            written(folder)
        pickled = pickle.dumps(rm.load(folder))
        if part == "tokenizer":
            file = folder / "tokenizer.json"
            content = json.loads(file.read_text())
            content["model"]["merges"] = content["model"]["merges"][:-1]
            file.write_text(json.dumps(content))
        elif part == "template":
            file = folder / "chat_template.jinja"
            file.write_text(file.read_text().replace("{% if tools %}", "{% if tools %}the "))
        elif part == "special tokens":
            file = folder / "tokenizer_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "<|start|>"}))
        else:
            file = folder / "reward_manifest.json"
            content = json.loads(file.read_text())
            content["rendering"]["append_eos"] = False
            file.write_text(json.dumps(content))
        with pytest.raises(ModelError, match="its tokenizer or rendering changed"):
            pickle.loads(pickled)

    def test_a_model_that_was_changed_in_memory_is_not_what_lies_there(self, tiny_decoder: MakeFolder) -> None:
        reward: Any = rm.load(tiny_decoder())
        reward.model.score.weight.data += 1.0
        with pytest.raises(ModelError, match="its weights changed"):
            pickle.loads(pickle.dumps(reward))

    def test_it_keeps_the_dtype_and_the_day_of_the_first_process(
        self, tiny_decoder: MakeFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        template = "{{ strftime_now('%d %B %Y') }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
        folder = tiny_decoder(chat_template=template)
        with pytest.warns(UserWarning, match="writes today's date"):
            reward: Any = rm.load(folder)
        pickled = pickle.dumps(reward)
        monkeypatch.setattr("rm_plugins.rendering.render.date", Tomorrow)
        monkeypatch.setattr("rm_plugins.models.placement._dtype", lambda name, device: {"auto": torch.float16}.get(name, name))
        again = pickle.loads(pickled)
        assert again.renderer.rendering == reward.renderer.rendering
        assert again.model.dtype == torch.float32


class Tomorrow(date):
    """A clock that is a day ahead."""

    @classmethod
    def today(cls) -> Tomorrow:
        return cls(2200, 1, 1)
