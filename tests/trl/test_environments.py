"""Providers inside environments, and environments and tool calls inside providers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOTrainer

import rm_plugins as rm
from rm_plugins_trl import reward_func
from tests.trl.conftest import TRL_WARNINGS, grpo_config, newest_trl

pytestmark = [*TRL_WARNINGS, newest_trl, pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")]

QWEN3 = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"


def quality(samples: Sequence[rm.Sample]) -> list[float | None]:
    """The length of a text; it abstains on an empty one."""
    return [float(len(sample.completion_text)) or None for sample in samples]


REWARD = rm.load(quality)


class Room:
    """An environment whose reward is a provider's, of what was written in it."""

    def __init__(self) -> None:
        self.text = ""

    def reset(self, text: str, **others: Any) -> None:
        self.text = text

    def write(self, text: str) -> str:
        """Write on the wall.

        Args:
            text: What to write.
        """
        self.text += text
        return "written"

    def get_reward(self) -> float:
        return float(REWARD.score([rm.Sample("Write.", self.text)]).values[0])


class WaitingRoom(Room):
    """The same with a reward that does not block."""

    async def get_reward(self) -> float:  # type: ignore[override]
        return float((await REWARD.ascore([rm.Sample("Write.", self.text)])).values[0])


def seen_by(completions: Sequence[Any], environments: Sequence[Room]) -> list[float]:
    return [float(len(environment.text)) for environment in environments]


@pytest.fixture
def policy(tiny_policy: Path) -> Path:
    """A policy whose template has tools."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    tokenizer.chat_template = QWEN3.read_text()
    tokenizer.save_pretrained(tiny_policy)
    return tiny_policy


@pytest.mark.parametrize("room", [Room, WaitingRoom])
def test_a_provider_is_an_environments_reward_and_a_function_sees_the_environment(
    room: type[Room], policy: Path, tmp_path: Path
) -> None:
    prompt = [{"role": "user", "content": "Write."}]
    rows = [{"prompt": prompt, "text": "abc"}, {"prompt": prompt, "text": ""}]
    both = {"provider": "sum", "members": [seen_by, {"provider": "tool-count", "high": 3}]}
    trainer = GRPOTrainer(
        model=str(policy),
        reward_funcs=[reward_func(both, name="both")],
        args=grpo_config(tmp_path, shuffle_dataset=False),
        train_dataset=Dataset.from_list(rows),
        environment_factory=room,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if f"rewards/{room.__name__}/mean" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert entry[f"rewards/{room.__name__}/mean"] == 3  # the empty wall abstains
        assert entry["rewards/both/mean"] == 1 + 1.5
        assert entry["rewards/both/member/1"] == 1


def test_many_environments_share_one_reward() -> None:
    rooms = [WaitingRoom() for _ in range(64)]
    for number, room in enumerate(rooms):
        room.write("x" * number)

    async def rewards() -> list[float]:
        return await asyncio.gather(*(room.get_reward() for room in rooms))

    found = asyncio.run(rewards())
    assert np.isnan(found[0])
    assert found[1:] == list(range(1, 64))
