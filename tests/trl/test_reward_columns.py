"""Several reward columns from one scoring: what trainers see, what is scored once, and what is scored again."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerState
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.providers.remote import Remote
from rm_plugins.server import create_app
from rm_plugins.training.journal import read_journal
from rm_plugins.training.reward_state import reward_state
from rm_plugins_trl import RewardColumn, RewardWatch, reward_func, reward_funcs
from tests.servers import serving
from tests.trl.conftest import TRL_WARNINGS, grpo_config, newest_trl, settings
from tests.trl.test_reward_function import ROWS

pytestmark = TRL_WARNINGS

HEADS = ("helpful", "correct", "brief", "kind")


class Judge(rm.Provider):
    """Two criteria of a text: its length, and how many of its characters are spaces; the second abstains on empty texts."""

    name = "judge"

    def __init__(self, *, known: bool = True) -> None:
        self.known = known
        self.batches: list[list[str]] = []

    @property
    def part_names(self) -> tuple[str, ...] | None:
        return ("length", "spaces") if self.known else None

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        texts = [sample.completion_text for sample in samples]
        self.batches.append(texts)
        lengths = np.array([len(text) for text in texts], dtype=float)
        spaces = np.array([text.count(" ") if text else np.nan for text in texts], dtype=float)
        parts = {"length": rm.Scores(lengths, kind="criterion"), "spaces": rm.Scores(spaces, kind="criterion")}
        return rm.Scores(lengths + spaces, parts=parts)


def heads_of(model: Path) -> dict[str, Any]:
    return {"provider": "sequence-classifier", "model": str(model), "head": dict.fromkeys(HEADS, 0.25)}


@pytest.fixture(scope="module")
def four_heads(tiny_decoder: Any) -> Path:
    folder: Path = tiny_decoder(num_labels=4, config={"id2label": dict(enumerate(HEADS))})
    return folder


def counted(reward: RewardColumn) -> list[int]:
    """The number of rows of every call of a model from now on."""
    trained = reward.provider.trained  # type: ignore[attr-defined]
    calls: list[int] = []
    outputs = trained.outputs

    def count(samples: Sequence[rm.Sample]) -> Any:
        calls.append(len(samples))
        return outputs(samples)

    trained.outputs = count
    return calls


class TestInTrainers:
    @pytest.mark.parametrize(
        ("trainer_class", "config_class", "more"),
        [
            (GRPOTrainer, GRPOConfig, {"multi_objective_aggregation": "normalize_then_sum"}),
            (GRPOTrainer, GRPOConfig, {}),
            (RLOOTrainer, RLOOConfig, {}),
        ],
    )
    def test_four_columns_are_one_forward_and_equal_four_rewards(
        self, trainer_class: Any, config_class: Any, more: dict[str, Any], four_heads: Path, tiny_policy: Path, tmp_path: Path
    ) -> None:
        columns = reward_funcs(heads_of(four_heads), name="judge")
        alone: Any = [reward_func({**heads_of(four_heads), "head": head}, name=f"judge/{head}") for head in HEADS]
        calls = counted(columns[0])
        logs = {}
        for name, rewards in {"columns": columns, "alone": alone}.items():
            trainer = trainer_class(
                model=str(tiny_policy),
                reward_funcs=list(rewards),
                args=config_class(
                    **settings(
                        tmp_path, num_generations=2, max_completion_length=8, reward_weights=[1.0, 0.5, 2.0, 0.0], seed=3
                    ),
                    **more,
                ),
                train_dataset=Dataset.from_list(ROWS),
            )
            trainer.train()
            logs[name] = [entry for entry in trainer.state.log_history if "reward" in entry]
        assert calls == [4, 4]  # one call of each of the two steps, where four rewards are logged
        assert len(logs["columns"]) == len(logs["alone"]) == 2
        for ours, theirs in zip(logs["columns"], logs["alone"], strict=True):
            for head in HEADS:
                assert ours[f"rewards/judge/{head}/mean"] == pytest.approx(theirs[f"rewards/judge/{head}/mean"], abs=1e-5)
            for figure in ("reward", "reward_std", "loss", "grad_norm"):
                assert ours[figure] == pytest.approx(theirs[figure], abs=1e-3), figure
            assert ours["rewards/judge/tokens_per_second"] > 0

    def test_in_online_dpo(self, tiny_policy: Path, tmp_path: Path) -> None:
        judge = Judge()
        trainer = OnlineDPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_policy),
            reward_funcs=list(reward_funcs(judge, ["length"])),
            args=OnlineDPOConfig(**settings(tmp_path, per_device_train_batch_size=2, max_new_tokens=8)),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=AutoTokenizer.from_pretrained(tiny_policy),
        )
        trainer.train()
        assert len(judge.batches) == 2

    def test_an_evaluation_scores_again_and_the_watch_sees_every_column(self, tiny_policy: Path, tmp_path: Path) -> None:
        judge = Judge()
        columns = reward_funcs(judge, name="judge")
        watch = RewardWatch(*columns, journal=tmp_path / "journal")
        trainer = GRPOTrainer(
            model=str(tiny_policy),
            reward_funcs=list(columns),
            args=grpo_config(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=2),
            train_dataset=Dataset.from_list(ROWS),
            eval_dataset=Dataset.from_list(ROWS),
            callbacks=[watch],
        )
        trainer.train()
        assert [len(batch) for batch in judge.batches] == [4, 2, 2, 4, 2, 2]
        logged = [entry for entry in trainer.state.log_history if "rewards/judge/length/mean" in entry]
        assert {"rewards/judge/length/std", "rewards/judge/spaces/abstained", "rewards/judge/abstained"} <= logged[0].keys()
        steps = list(read_journal(tmp_path / "journal"))
        assert [step.step for step in steps] == [1, 2]
        assert {name for step in steps for name in step.figures} == {"judge/length", "judge/spaces"}

    def test_what_it_learns_is_kept_once_and_restored(self, tiny_policy: Path, tmp_path: Path) -> None:
        def columns() -> list[RewardColumn]:
            running = {"name": "zscore", "running": True, "warmup": 2}
            length = {"provider": "function", "function": length_of, "label": "length", "transform": running}
            return reward_funcs({"provider": "sum", "members": [length, {"provider": "repetition"}]}, name="both")

        def train(rewards: list[RewardColumn], folder: str, resume: str | None) -> Any:
            trainer = GRPOTrainer(
                model=str(tiny_policy),
                reward_funcs=list(rewards),
                args=grpo_config(tmp_path, output_dir=str(tmp_path / folder), save_strategy="steps", save_steps=1),
                train_dataset=Dataset.from_list(ROWS),
            )
            trainer.train(resume_from_checkpoint=resume)
            return trainer

        whole, again = columns(), columns()
        assert [reward.__name__ for reward in whole] == ["both/length", "both/repetition"]
        train(whole, "whole", None)
        checkpoint = tmp_path / "whole" / "checkpoint-1"
        kept = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
        assert [name for name in kept if name.startswith("rm_plugins/")] == ["rm_plugins/both"]
        train(again, "again", str(checkpoint))
        assert reward_state(again[0].provider) == reward_state(whole[0].provider) != {}


def length_of(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


PROMPTS, COMPLETIONS = ["Q", "Q", "R"], ["a b", "cc", ""]


class TestSharing:
    def test_each_column_gets_its_part_and_an_abstention_is_none(self) -> None:
        judge = Judge()
        length, spaces = reward_funcs(judge)
        assert length(PROMPTS, COMPLETIONS) == [3, 2, 0]
        assert spaces(PROMPTS, COMPLETIONS) == [1, 0, None]
        assert len(judge.batches) == 1

    def test_a_column_that_is_called_again_scores_again(self) -> None:
        judge = Judge()
        length, spaces = reward_funcs(judge)
        for _ in range(3):
            length(PROMPTS, COMPLETIONS)
        assert len(judge.batches) == 3
        spaces(PROMPTS, COMPLETIONS)  # of the last of them
        assert len(judge.batches) == 3
        spaces(PROMPTS, COMPLETIONS)
        spaces(PROMPTS, COMPLETIONS)
        assert len(judge.batches) == 5  # and never of an earlier one

    @pytest.mark.parametrize("change", ["lists", "step", "state", "column", "item", "message", "names"])
    def test_another_batch_is_scored_again_however_alike(self, change: str) -> None:
        judge, state = Judge(), TrainerState(max_steps=3)
        length, spaces = reward_funcs(judge)
        prompts = [[{"role": "user", "content": "Q"}]]
        completions = [[{"role": "assistant", "content": "a b"}]]
        columns: dict[str, Any] = {"answer": ["x"]}
        length(prompts, completions, trainer_state=state, **columns)
        match change:
            case "lists":
                completions = [*completions]
            case "step":
                state.global_step = 1
            case "state":
                state = TrainerState(max_steps=3)
            case "column":
                columns["answer"] = [*columns["answer"]]
            case "item":
                completions[0] = [{"role": "assistant", "content": "c d e"}]
            case "message":
                completions[0][0]["content"] = "c d e"
            case "names":
                columns["level"] = [1]
        found = spaces(prompts, completions, trainer_state=state, **columns)
        assert found == [2.0 if change in ("item", "message") else 1.0]
        assert len(judge.batches) == 2

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=20))
    def test_any_order_of_calls_gives_the_right_numbers(self, calls: list[tuple[int, int]]) -> None:
        """And no batch is scored more often than its most eager column asks, nor less."""
        judge = Judge()
        columns = reward_funcs(judge)
        batches = [([f"Q{number}"], [" " * number + "x"]) for number in range(3)]
        for batch, column in calls:
            assert columns[column](*batches[batch]) == [[batch + 1.0], [float(batch)]][column]
        asked = [[calls.count((batch, column)) for column in range(2)] for batch in range(3)]
        assert sum(map(max, asked)) <= len(judge.batches) <= len(calls)

    def test_what_nobody_asks_for_is_not_kept_for_ever(self) -> None:
        length, _ = reward_funcs(Judge())
        for number in range(50):
            length(["Q"], [str(number)])
        assert len(length._shared._batches) <= 8

    def test_a_failure_is_not_kept(self) -> None:
        fails = [True]

        def sometimes(samples: Sequence[rm.Sample]) -> list[float]:
            if fails[0]:
                raise RuntimeError("no network")
            return length_of(samples)

        one, two = reward_funcs({"provider": "sum", "members": [sometimes, length_of]})
        with pytest.raises(ScoringError, match="no network"):
            one(PROMPTS, COMPLETIONS)
        fails[0] = False
        assert two(PROMPTS, COMPLETIONS) == [3, 2, 0]


class TestPickled:
    def test_together_they_share_what_they_score(self) -> None:
        length, spaces = pickle.loads(pickle.dumps(reward_funcs(Judge(), name="mine", awaitable=False)))
        assert (length.__name__, spaces.__name__, length.awaitable) == ("mine/length", "mine/spaces", False)
        assert length(PROMPTS, COMPLETIONS) == [3, 2, 0]
        assert spaces(PROMPTS, COMPLETIONS) == [1, 0, None]
        assert length.provider is spaces.provider
        assert len(length.provider.batches) == 1

    def test_apart_they_still_score(self) -> None:
        length, spaces = (pickle.loads(pickle.dumps(reward)) for reward in reward_funcs(Judge()))
        assert (length(PROMPTS, COMPLETIONS), spaces(PROMPTS, COMPLETIONS)) == ([3, 2, 0], [1, 0, None])
        assert length.provider is not spaces.provider


class Slow(Judge):
    """A judge that waits for its server."""

    name = "slow"
    concurrent = True

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.05

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        time.sleep(self.seconds)
        return super().score_batch(samples)


@newest_trl
class TestAwaited:
    def test_columns_that_are_awaited_together_are_scored_once(self) -> None:
        judge = Slow()
        columns: list[Any] = reward_funcs(judge, awaitable=True)

        async def both(prompts: list[str], completions: list[str]) -> Any:
            return await asyncio.gather(*[column(prompts, completions) for column in columns])

        async def twice() -> Any:
            return await asyncio.gather(both(PROMPTS, COMPLETIONS), both(["S"], ["d e f"]), both(PROMPTS, [*COMPLETIONS]))

        first, second, third = asyncio.run(twice())
        assert first == third == [[3, 2, 0], [1, 0, None]]
        assert second == [[5], [2]]
        assert sorted(map(len, judge.batches)) == [1, 3, 3]

    def test_one_after_another_too(self) -> None:
        judge = Slow()
        columns: list[Any] = reward_funcs(judge, awaitable=True)
        length, spaces = columns

        async def both() -> Any:
            return [await length(PROMPTS, COMPLETIONS), await spaces(PROMPTS, COMPLETIONS)]

        assert asyncio.run(both()) == [[3, 2, 0], [1, 0, None]]
        assert len(judge.batches) == 1

    def test_a_cancelled_column_does_not_cancel_the_others(self) -> None:
        judge = Slow()
        judge.seconds = 0.2
        columns: list[Any] = reward_funcs(judge, awaitable=True)
        length, spaces = columns

        async def cancelled() -> Any:
            tasks = [asyncio.ensure_future(each) for each in [length(PROMPTS, COMPLETIONS), spaces(PROMPTS, COMPLETIONS)]]
            await asyncio.sleep(0.05)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        first, second = asyncio.run(cancelled())
        assert isinstance(first, asyncio.CancelledError)
        assert second == [1, 0, None]

    def test_an_error_reaches_all(self) -> None:
        def broken(samples: Sequence[rm.Sample]) -> list[float]:
            raise RuntimeError("no network")

        columns: list[Any] = reward_funcs({"provider": "sum", "members": [broken, length_of]}, awaitable=True, name="mine")

        async def both() -> Any:
            return await asyncio.gather(*[column(PROMPTS, COMPLETIONS) for column in columns], return_exceptions=True)

        for error in asyncio.run(both()):
            assert isinstance(error, ScoringError)
            assert error.__notes__ == ["This is of the reward 'mine'."]


class TestNames:
    def test_parts_by_name_by_label_and_inside_parts(self, four_heads: Path) -> None:
        spec = {
            "provider": "sum",
            "members": [{**heads_of(four_heads), "label": "judge"}, {"provider": "repetition"}],
        }
        rewards = reward_funcs(spec, ["judge/kind", "1", "judge"], name="all")
        assert [reward.__name__ for reward in rewards] == ["all/judge/kind", "all/1", "all/judge"]
        expected = rm.load(spec).score([rm.Sample("Q", "a")])
        found: Any = [reward(["Q"], ["a"])[0] for reward in rewards]
        judge = expected.parts["0"]
        np.testing.assert_allclose(found, [judge.parts["kind"].values[0], expected.parts["1"].values[0], judge.values[0]])

    def test_all_of_them_have_the_labels_of_members_if_these_differ(self) -> None:
        rules = [{"provider": "repetition"}, {"provider": "length-window", "low": 1}]
        assert [reward.column for reward in reward_funcs({"provider": "product", "members": rules})] == [
            "repetition",
            "length-window",
        ]
        assert [reward.column for reward in reward_funcs({"provider": "sum", "members": [rules[0]] * 2})] == ["0", "1"]
        gate = {"provider": "gate", "gate": rules[0], "reward": rules[1]}
        assert [reward.column for reward in reward_funcs(gate)] == ["gate", "reward"]

    @pytest.mark.parametrize(
        ("spec", "columns", "message"),
        [
            ("judge", ["lenght"], r"columns: the reward 'judge' has no part 'lenght'. Did you mean 'length'"),
            ("judge", [], r"columns: there are none"),
            ("judge", "length", r"must be a list of names, such as \['length'\]"),
            ("judge", ["length", "length"], r"a part is named twice: 'length', 'length'"),
            ("sum", ["repetition", "0"], r"a part is named twice: 'repetition', '0'"),
            ("judge", {"length"}, r"the order of a set differs between processes"),
            ("judge", [0], r"the name of a part must be text, such as '0'; got 0"),
            pytest.param("judge", iter(["length"] * 2), r"a part is named twice: 'length', 'length'", id="an iterator"),
            ("sum", ["repetition/x"], r"the reward 'repetition' \(members\[0\]\) has no part 'x'"),
            ("rule", None, r"the scores of 'repetition' have no parts. Use reward_func\(SPEC\)"),
            ("rule", ["x"], r"the reward 'repetition' has no part 'x'"),
            ("unknown", None, r"is only known after it has scored. Name those that you need"),
        ],
        ids=str,
    )
    def test_wrong_ones_are_errors_before_training(self, spec: str, columns: Any, message: str) -> None:
        rule = {"provider": "repetition"}
        specs: dict[str, Any] = {
            "judge": Judge(),
            "unknown": Judge(known=False),
            "rule": rule,
            "sum": {"provider": "sum", "members": [rule, {"provider": "length-window", "low": 1}]},
        }
        with pytest.raises(SpecError, match=message):
            reward_funcs(specs[spec], columns)

    def test_of_a_reward_whose_parts_only_a_batch_shows(self) -> None:
        length, wrong = reward_funcs(Judge(known=False), ["length", "lenght"], name="mine")
        assert length(PROMPTS, COMPLETIONS) == [3, 2, 0]
        with pytest.raises(SpecError, match=r"'mine' has no part 'lenght' in any batch so far. Did you mean 'length'"):
            wrong(PROMPTS, COMPLETIONS)

    def test_two_rewards_of_one_name_are_refused(self) -> None:
        state = TrainerState()
        (length, _), other = reward_funcs(Judge(), name="mine"), reward_func(Judge(), name="mine")
        length(PROMPTS, COMPLETIONS, trainer_state=state)
        with pytest.raises(SpecError, match="Two rewards of this training are called 'mine'"):
            other(PROMPTS, COMPLETIONS, trainer_state=state)
        with pytest.raises(SpecError, match="Two rewards of this training are called 'mine/length'"):
            reward_func(Judge(), name="mine/length")(PROMPTS, COMPLETIONS, trainer_state=state)

    def test_metrics_of_the_parts_of_a_column_are_not_the_trainers_own(self) -> None:
        """TRL logs ``rewards/mine/length/std``, the spread of the column; its part has a detail of this name, too."""

        def with_spread(samples: Sequence[rm.Sample]) -> rm.Scores:
            lengths = np.array([len(sample.completion_text) for sample in samples], dtype=float)
            return rm.Scores(lengths, parts={"length": rm.Scores(lengths, {"std": lengths + 0.5, "other": lengths})})

        logged: dict[str, float] = {}
        (length,) = reward_funcs(with_spread, ["length"], name="mine")
        length(PROMPTS, COMPLETIONS, log_metric=logged.__setitem__)
        assert {"rewards/mine/length/std/mean", "rewards/mine/length/other"} < {*logged}
        assert "rewards/mine/length/std" not in logged

    def test_lists_of_other_lengths_are_refused(self) -> None:
        with pytest.raises(DataError, match="'completions' must be a list of 3 items"):
            reward_funcs(Judge())[0](PROMPTS, ["a"])


def test_a_served_rewards_heads_are_columns(four_heads: Path) -> None:
    local = rm.load(heads_of(four_heads))
    with serving(create_app(local), lifespan="on") as url:
        rewards = reward_funcs(Remote(url=url), ["helpful", "head/kind"])
        expected = local.score([rm.Sample("Q", "a")]).parts
        found: Any = [reward(["Q"], ["a"])[0] for reward in rewards]
        np.testing.assert_allclose(found, [expected["helpful"].values[0], expected["kind"].values[0]], atol=1e-4)
        rewards[0].provider.close()
