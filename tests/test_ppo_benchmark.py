"""The benchmark of PPO: its page says what its runs found, and a rollout is counted and ended alike for every trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rm_plugins_trl.demo.policies import make_language_model, make_tokenizer
from tests.benchmarks.ppo_page import LEARNING, REAL, SPEED, TITLES, sections
from tests.benchmarks.ppo_rollouts import Rollouts, divergence
from tests.benchmarks.ppo_runs import CONTENDERS, GRPO, OLDER, OURS, Run


def curve(name: str, seed: int, end: float) -> dict[str, Any]:
    """A learning run whose gold reward rises evenly from 0.5, in the same steps as its divergence and its seconds."""
    points = [
        {"updates": step, "tokens": 100 * step, "seconds": 10.0 * step, "kl": 0.1 * step, "gold": 0.5 + (end - 0.5) * step / 2}
        for step in range(3)
    ]
    return {"run": Run("learning", name, seed, 1e-3, "sizes").key, "points": points}


def step(name: str, seconds: float, peak: int) -> dict[str, Any]:
    """A speed run of rollouts of 100 tokens."""
    figures = {"seconds": [seconds, seconds], "generation": [1.0, 1.0], "tokens": [100, 100], "peak": peak}
    return {"run": Run("speed", name, 0, 1e-6, "a step").key, **figures}


def row(text: str, *cells: str) -> list[str]:
    """The cells of the only table row that has these."""
    found = [
        line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|") and all(c in line for c in cells)
    ]
    assert len(found) == 1
    return found[0]


def test_learning_is_summarized(tmp_path: Path) -> None:
    results = [curve(name, seed, end) for seed in range(3) for name, end in zip(CONTENDERS, (0.6, 0.7, 0.7), strict=True)]
    text = sections(results, tmp_path / "ppo.md")[LEARNING]
    assert {path.name for path in tmp_path.iterdir()} == {"ppo-gold-kl.svg", "ppo-gold-seconds.svg"}
    assert "over 3 seeds" in text
    assert "seconds to gold 0.60" in text
    # Half of the way from 0.5 to 0.7 is at the second of three evaluations.
    assert row(text, TITLES[OURS])[2:7] == ["0.700 ± 0.000", "0.700 ± 0.000", "0.200 ± 0.000", "0.100 ± 0.000", "10 ± 0"]


def test_runs_of_other_sizes_are_left_out(tmp_path: Path) -> None:
    older = curve(OURS, 0, 0.9)
    older["run"][1] = "other sizes"
    text = sections([older, *(curve(OURS, seed, 0.7) for seed in (0, 1))], tmp_path / "ppo.md")[LEARNING]
    assert row(text, TITLES[OURS])[2] == "0.700 ± 0.000"


def test_speeds_are_relative_to_the_older_trainer(tmp_path: Path) -> None:
    text = sections([step(OLDER, 4.0, 2**30), step(OURS, 2.0, 2**29)], tmp_path / "ppo.md")[SPEED]
    assert row(text, TITLES[OURS]) == ["a step", TITLES[OURS], "2.00", "1.00", "50.0", "2.00x", "512", "0.50"]


def test_nothing_measured_has_no_section(tmp_path: Path) -> None:
    assert sections([], tmp_path / "ppo.md") == {}
    assert SPEED not in {name for name, text in sections([step(OLDER, 4.0, 1)], tmp_path / "ppo.md").items() if text}
    assert REAL not in sections([curve(GRPO, 0, 0.7)], tmp_path / "ppo.md")


def test_a_key_survives_json() -> None:
    key = Run("real", OURS, 0, 1e-5, "sizes").key
    assert json.loads(json.dumps(key)) == key


@pytest.fixture(scope="module")
def policy() -> tuple[Any, Any]:
    """A random policy and its tokenizer."""
    tokenizer = make_tokenizer(["One fox sings. Two owls rest."])
    return make_language_model(tokenizer, 0).eval(), tokenizer


def test_completions_end_where_they_should(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    before: list[int] = []
    rollouts = Rollouts(model, tokenizer, before.append, lengths=(3, 6))
    try:
        ids = tokenizer(["One", "Two owls"], padding=True, padding_side="left", return_tensors="pt")
        for _ in range(2):
            found = model.generate(**ids, do_sample=True, max_new_tokens=6)[:, ids["input_ids"].shape[1] :]
        with rollouts.uncounted():
            model.generate(**ids, do_sample=True, max_new_tokens=6)
    finally:
        del model.generate
    ended = (found == tokenizer.eos_token_id).int().argmax(1) + 1
    assert before == [0, 1]
    assert all(3 <= length <= 6 for length in ended.tolist())
    assert rollouts.tokens[1] == int(ended.sum())
    assert len(rollouts.starts) == len(rollouts.ends) == 2


def test_divergence_of_a_policy_from_itself_is_0(policy: tuple[Any, Any]) -> None:
    model, tokenizer = policy
    other = make_language_model(tokenizer, 1).eval()
    prompts = [{"prompt": "One"}, {"prompt": "Two owls"}, {"prompt": "One fox"}]
    state = torch.get_rng_state()
    completions, same, length = divergence(model, model, tokenizer, prompts, 5, seed=0, batch_size=2)
    _, different, _ = divergence(model, other, tokenizer, prompts, 5, seed=0, batch_size=2)
    assert len(completions) == 3
    assert 0 < length <= 5
    assert same == 0.0
    assert different > 0.01
    assert torch.equal(state, torch.get_rng_state())
