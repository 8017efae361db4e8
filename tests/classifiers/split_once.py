"""One of the processes that share a model, started by torchrun: writes what it was given and what it scored.

Its arguments are the model's folder and the folder for the answers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

import rm_plugins as rm
from rm_plugins.errors import RmPluginsError
from rm_plugins.identity import fingerprint
from tests.classifiers.conftest import SAMPLES


def main(model: str, answers: str) -> None:
    """Score what each process is given: the same samples, and samples of its own."""
    reward: Any = rm.load(model, tp_plan="auto")
    rank = dist.get_rank()
    found: dict[str, Any] = {"weight": type(reward.model.model.layers[0].mlp.up_proj.weight).__name__}
    found["scores"] = list(reward.score(SAMPLES).values)
    try:
        reward.score(SAMPLES[rank : rank + 2])
    except RmPluginsError as error:
        found["different"] = str(error)
    found["fingerprint"] = fingerprint(reward)
    found["problems"] = reward.verify()
    Path(answers, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
