"""The models, the servers of ours, and a peer's environment or the reason why its tests are skipped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import rm_plugins as rm
from tests.peers import environments
from tests.peers.models import make_cross_encoder, make_decoder
from tests.peers.originals import Original

# They run in environments of their own, and import what is only there.
collect_ignore = ["clients", "hosts"]


@pytest.fixture(scope="session", autouse=True)
def asked_for() -> None:
    """Nothing here runs by itself: it takes minutes, and the peers."""
    if not environments.FOLDER:
        pytest.skip("`make test-peers` runs it")


@pytest.fixture(scope="session")
def environment() -> Callable[[str], Path]:
    """The interpreter of an environment; skips where that cannot be used."""

    def of(name: str) -> Path:
        if reason := environments.missing(name):
            pytest.skip(reason)
        return environments.python(name)

    return of


@pytest.fixture(scope="session")
def decoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose padding is its EOS."""
    return make_decoder(tmp_path_factory.mktemp("peers") / "decoder")


@pytest.fixture(scope="session")
def cross_encoder_path(tmp_path_factory: pytest.TempPathFactory, minilm_path: Path) -> Path:
    """A cross-encoder."""
    return make_cross_encoder(minilm_path, tmp_path_factory.mktemp("peers") / "cross-encoder")


@pytest.fixture(scope="session")
def decoder_spec(decoder_path: Path) -> Path:
    """The decoder, read at its very last token, as vLLM, TEI and OpenRLHF's server do: the EOS, which is its padding, too."""
    spec = decoder_path.with_name("decoder.yaml")
    spec.write_text(f"provider: sequence-classifier\nmodel: {decoder_path}\nread: last\n")
    return spec


@pytest.fixture(scope="session")
def decoder(decoder_spec: Path) -> rm.Provider:
    """The decoder as the local provider has it."""
    return rm.load(decoder_spec)


@pytest.fixture(scope="session")
def cross_encoder(cross_encoder_path: Path) -> rm.Provider:
    """The cross-encoder as the local provider has it."""
    return rm.load(cross_encoder_path)


@pytest.fixture(scope="session")
def original_decoder(decoder_path: Path) -> Original:
    """The decoder as transformers has it."""
    return Original(decoder_path)


@pytest.fixture(scope="session")
def original_cross_encoder(cross_encoder_path: Path) -> Original:
    """The cross-encoder as transformers has it."""
    return Original(cross_encoder_path)
