"""A model server that its owner wrote with KServe, with the tensors of NeMo-Aligner: ``sentences`` give ``rewards``."""

from __future__ import annotations

import argparse
import asyncio

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.errors import InvalidInput

from tests.peers.hosts.scoring import Classifier


class Reward(Model):  # type: ignore[misc]  # it is not seen here
    """Rewards of texts."""

    def __init__(self, folder: str) -> None:
        super().__init__("reward_model")
        self.classifier = Classifier(folder)
        self.ready = True

    async def get_input_types(self) -> list[dict[str, object]]:
        """What the model's metadata say that it takes."""
        return [{"name": "sentences", "datatype": "BYTES", "shape": [-1, 1]}]

    async def get_output_types(self) -> list[dict[str, object]]:
        """What the model's metadata say that it gives."""
        return [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}]

    async def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> InferResponse:
        """One reward for each text."""
        given = payload.get_input_by_name("sentences")
        if given is None:
            raise InvalidInput("there is no input 'sentences'")
        rows = [row for row in given.as_numpy().reshape(-1).tolist()]
        values = self.classifier.scores([row.decode() if isinstance(row, bytes) else row for row in rows])
        output = InferOutput(name="rewards", shape=[len(values), 1], datatype="FP32", data=values)
        return InferResponse(response_id=payload.id or "unnamed", model_name=self.name, infer_outputs=[output])


def main() -> None:
    """Serve the model that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    asyncio.set_event_loop(asyncio.new_event_loop())
    ModelServer(http_port=given.port, enable_grpc=False).start([Reward(given.model)])


if __name__ == "__main__":
    main()
