"""ms-swift's deployed reward model, which renders conversations by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.peers.server import Peer


def _command(python: Path, model: Path, port: int) -> Sequence[str]:
    # The model's own chat template: ms-swift's for Qwen2 are others.
    rendering = ["--model_type", "qwen2", "--template", "dummy", "--template_backend", "jinja"]
    head = ["--task_type", "seq_cls", "--num_labels", "1", "--problem_type", "regression", "--torch_dtype", "float32"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--served_model_name", "rm"]
    return [str(python), "-m", "swift.cli.deploy", "--model", str(model), *rendering, *head, *where]


PEER = Peer(name="ms-swift", distribution="ms-swift", environment="swift", command=_command)
