"""A Triton server with a model that its owner wrote with PyTriton, as NeMo-Aligner serves its reward models."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from tests.peers.hosts.scoring import Classifier


def main() -> None:
    """Serve the model that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("largest_batch", type=int)
    given = parser.parse_args()
    classifier = Classifier(given.model)

    @batch  # type: ignore[untyped-decorator]  # it is not seen here
    def infer(sentences: Any) -> dict[str, Any]:
        texts = [text.decode() for text in sentences.reshape(-1)]
        return {"rewards": np.array(classifier.scores(texts), dtype=np.float32).reshape(-1, 1)}

    config = TritonConfig(http_address="127.0.0.1", http_port=given.port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="reward_model",
            infer_func=infer,
            inputs=[Tensor(name="sentences", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="rewards", dtype=np.float32, shape=(1,))],
            config=ModelConfig(max_batch_size=given.largest_batch),
        )
        triton.serve()


if __name__ == "__main__":
    main()
