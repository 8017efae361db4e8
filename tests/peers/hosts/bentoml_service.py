"""A server that its owner wrote with BentoML, after OpenRLHF's wire: ``POST /get_reward``, one request at a time."""

# No postponed annotations: BentoML makes the request's schema of them.
import os
import sys

import bentoml

from tests.peers.hosts.scoring import Classifier


@bentoml.service(workers=1, traffic={"timeout": 120})
class Reward:
    """Rewards of texts."""

    def __init__(self) -> None:
        self.classifier = Classifier(os.environ["REWARD_MODEL"])

    @bentoml.api  # type: ignore[untyped-decorator]  # it is not seen here
    def get_reward(self, query: list[str]) -> dict[str, list[float]]:
        """As OpenRLHF's servers answer."""
        return {"rewards": self.classifier.scores(query)}


def main() -> None:
    """Serve the model that the arguments name, in BentoML's own process."""
    model, port = sys.argv[1:]
    os.environ["REWARD_MODEL"] = model
    serve = ["-m", "bentoml", "serve", "tests.peers.hosts.bentoml_service:Reward", "--host", "127.0.0.1", "--port", port]
    os.execv(sys.executable, [sys.executable, *serve])


if __name__ == "__main__":
    main()
