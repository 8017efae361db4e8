"""A server that its owner wrote with LitServe, after OpenRLHF's wire: ``POST /get_reward``, one request at a time."""

# No postponed annotations: LitServe looks at the class itself that `decode_request` takes.
import argparse
from typing import Any

import litserve

from tests.peers.hosts.scoring import Classifier


class Reward(litserve.LitAPI):  # type: ignore[misc]  # it is not seen here
    """Rewards of texts."""

    def __init__(self, folder: str) -> None:
        super().__init__(api_path="/get_reward")
        self.folder = folder

    def setup(self, device: str) -> None:
        """Load the model, in the worker's process."""
        self.classifier = Classifier(self.folder)

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        """The texts."""
        queries: list[str] = request["query"]
        return queries

    def predict(self, queries: list[str]) -> list[float]:
        """Their rewards."""
        return self.classifier.scores(queries)

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """As OpenRLHF's servers answer."""
        return {"rewards": output}


def main() -> None:
    """Serve the model that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    given = parser.parse_args()
    litserve.LitServer(Reward(given.model), accelerator="cpu", timeout=60).run(
        host="127.0.0.1", port=given.port, generate_client_file=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
