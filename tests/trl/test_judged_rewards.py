"""GRPO with a rubric whose judge is on a server: the trainer's rewards are the rubric's, with its cost and criteria in the logs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset
from trl import GRPOTrainer

import rm_plugins as rm
from rm_plugins_trl import reward_func
from tests.fake_servers.chat import chat
from tests.fake_servers.judge import Choice, choice
from tests.servers import serving
from tests.trl.conftest import TRL_WARNINGS, grpo_config

pytestmark = TRL_WARNINGS

ROWS = [
    {"prompt": text, "rubric": [{"name": "vowel", "text": f"It has the letter {letter}.", "weight": 2.0, "negative": False}]}
    for text, letter in (("Name a colour.", "a"), ("one, two", "e"), ("2+2?", "i"), ("Is the sea salty?", "o"))
]
"""Each row has a criterion of its own, beside one of the spec's judge that every answer needs."""


def letters(text: str) -> Choice:
    """Judges each criterion rightly; a completion with an x is refused."""
    completion = text.partition("<response>\n")[2].partition("\n</response>")[0]
    wanted = re.findall(r"It has the letter (\w)\.", text)
    if "x" in completion:
        return choice("", refusal="I cannot judge this.")
    return choice(json.dumps({str(number): "yes" if letter in completion else "no" for number, letter in enumerate(wanted, 1)}))


def expected(completion: str, letter: str) -> float | None:
    return None if "x" in completion else float(letter in completion)


@pytest.mark.parametrize("cached", [False, True], ids=["asked", "cached"])
def test_grpo_learns_from_a_rubric(cached: bool, tiny_policy: Path, tmp_path: Path) -> None:
    app = chat(letters)
    seen: list[tuple[str, str, float | None]] = []

    with serving(app) as url:
        judge = {"name": "openai", "url": url, **({"cache": str(tmp_path / "cache")} if cached else {})}
        rubric = rm.load({"provider": "rubric", "judge": judge, "criteria_column": "rubric"})
        reward = reward_func(rubric, name="rubric")

        def watched(
            prompts: list[str], completions: list[str], rubric: list[list[dict[str, str]]], **more: object
        ) -> list[float | None]:
            rewards = [
                expected(completion, criteria[0]["text"][-2]) for completion, criteria in zip(completions, rubric, strict=True)
            ]
            seen.extend(zip(prompts, completions, rewards, strict=True))
            return rewards

        trainer = GRPOTrainer(
            model=str(tiny_policy),
            reward_funcs=[reward, watched],
            args=grpo_config(tmp_path, max_steps=3, seed=0),
            train_dataset=Dataset.from_list(ROWS),
        )
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "reward" in entry]
        assert len(logged) == 3
        for entry in logged:
            assert entry["rewards/rubric/mean"] == pytest.approx(entry["rewards/watched/mean"], nan_ok=True)
            assert entry["rewards/rubric/calls"] + entry["rewards/rubric/cached"] == 4
            assert entry["rewards/rubric/criterion/vowel"] == pytest.approx(entry["rewards/rubric/mean"], nan_ok=True)
            assert entry["rewards/rubric/missing"] == entry["rewards/rubric/abstained"]
            assert entry["rewards/rubric/prompt_tokens"] > 0 or entry["rewards/rubric/calls"] == 0
        assert len({reward for _, _, reward in seen} - {None}) == 2, "every completion was judged alike"
        samples = [
            rm.Sample(prompt, completion, {"rubric": next(row["rubric"] for row in ROWS if row["prompt"] == prompt)})
            for prompt, completion, _ in seen
        ]
        asked = len(app.state.bodies)
        again = rubric.score(samples)
        assert again.values.tolist() == pytest.approx(
            [float("nan") if each is None else each for *_, each in seen], nan_ok=True
        )
        assert (len(app.state.bodies) == asked) == (cached and not again.abstained.any())
        rubric.close()
