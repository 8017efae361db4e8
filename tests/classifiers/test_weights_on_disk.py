"""What becomes of a loaded model when somebody writes into its files: nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.identity import fingerprint
from tests.cheap_ensembles.conftest import adapters_of
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
            spec = adapters[0] if kind == "adapter" else {"provider": kind, "adapters": adapters}
            return spec, [folder, *map(Path, adapters)]
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
