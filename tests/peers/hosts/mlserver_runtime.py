"""A runtime for MLServer that its owner wrote, with the tensors of NeMo-Aligner: ``sentences`` give ``rewards``."""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.cli.main import root
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.peers.hosts.scoring import Classifier


class Reward(MLModel):  # type: ignore[misc]  # it is not seen here
    """Rewards of texts."""

    async def load(self) -> bool:
        """Load the model."""
        self.classifier = Classifier(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One reward for each text."""
        (texts,) = [StringCodec.decode_input(given) for given in payload.inputs if given.name == "sentences"]
        rewards = np.array(self.classifier.scores(texts), dtype=np.float32)[:, None]
        output = NumpyCodec.encode_output("rewards", rewards)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])


def main() -> None:
    """Serve the model that the arguments name; its metadata declare no tensors, as is usual there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    ports = {"http_port": given.port, "grpc_port": _free_port(), "metrics_port": _free_port()}
    model = {
        "name": "reward_model",
        "implementation": "tests.peers.hosts.mlserver_runtime.Reward",
        "parameters": {"uri": given.model},
    }
    with tempfile.TemporaryDirectory() as folder:
        settings = {"host": "127.0.0.1", "parallel_workers": 0, **ports}
        Path(folder, "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        Path(folder, "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
        root(["start", folder])


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
