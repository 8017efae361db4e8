"""GRPO of an agent with each kind of reward that judges, compares, waits or looks at tools: the same in one process and in several."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trl
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2ForSequenceClassification, set_seed
from trl import GRPOTrainer

import rm_plugins as rm
from rm_plugins.wire import values_to_json
from rm_plugins_trl import RewardFunction, reward_func, reward_funcs
from tests.comparisons.judges_of_texts import chance
from tests.conftest import make_tokenizer
from tests.fake_servers.chat import chat
from tests.fake_servers.judge import Choice, choice
from tests.fake_servers.native import native
from tests.servers import serving
from tests.trained_judges.world import make_judge
from tests.trl.conftest import grpo_config, made_policy, tiny_config

BATCHES, PROMPTS, GENERATIONS = 2, 4, 4
"""A batch has both orders of two pairs. The orders of a pair are two prompts apart: of two processes, each has one of them."""

HEADS = ("helpful", "kind")

ROWS = [
    {
        "prompt": [{"role": "user", "content": f"Which answer {number} is better? A: {first} B: {second}"}],
        "verdict": "A" if first == "blue" else "B",
        "pair": f"pair {number}",
        "order": order,
        "rubric": [{"name": "vowel", "text": f"It has the letter {'aeio'[number]}.", "negative": False}],
        "written": "x" * number,
    }
    for batch in range(BATCHES)
    for order, (first, second) in enumerate([("blue", "two"), ("two", "blue")])
    for number in (2 * batch, 2 * batch + 1)
]

CALL = '<tool_call>\n{"name": "write", "arguments": {"text": "blue"}}\n</tool_call>'
ANSWERS = ("A sea is blue. [[A]]", "[[B]] it is", "I do not know.", "[[B]]", CALL, CALL.replace("text", "words"))


class Wall:
    """An environment that waits for its reward: the number of characters on it."""

    def reset(self, written: str, **others: Any) -> None:
        self.text = written

    def write(self, text: str) -> str:
        """Write on the wall.

        Args:
            text: What to write.
        """
        self.text += text
        return "written"

    async def get_reward(self) -> float:
        return float((await WRITTEN.ascore([rm.Sample("Write.", self.text)])).values[0])


def written(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


def on_the_wall(completions: Sequence[Any], environments: Sequence[Wall]) -> list[float]:
    return [float(environment.text.count("x")) for environment in environments]


WRITTEN = rm.load(written)


def letters(question: str) -> Choice:
    """Judges each criterion rightly, and refuses a completion that does not know."""
    response = question.partition("<response>\n")[2].partition("\n</response>")[0]
    wanted = re.findall(r"It has the letter (\w)\.", question)
    if "know" in response:
        return choice("", refusal="I cannot judge this.")
    return choice(json.dumps({str(number): "yes" if letter in response else "no" for number, letter in enumerate(wanted, 1)}))


@contextmanager
def models_and_servers(folder: Path) -> Iterator[tuple[str, str]]:
    """Make the policy, the judge and the classifier in a folder; the URLs of a server with a judge, and of one with a reward."""
    policy = made_policy(folder / "agent")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(policy)
    make_judge(folder / "judge")
    set_seed(0)
    config = tiny_config(make_tokenizer(), id2label=dict(enumerate(HEADS)), initializer_range=0.4)
    Qwen2ForSequenceClassification(config).save_pretrained(folder / "heads")
    make_tokenizer().save_pretrained(folder / "heads")
    reward = native(lambda sample: float(len(str(sample.completion))))
    with serving(chat(letters)) as judge_url, serving(reward, lifespan="off") as reward_url:
        yield judge_url, reward_url


def rewards_of(folder: Path, judge_url: str, reward_url: str) -> list[RewardFunction]:
    """The rewards, with the models and servers of `models_and_servers`."""
    heads = {
        "provider": "sequence-classifier",
        "model": str(folder / "heads"),
        "head": dict.fromkeys(HEADS, 0.5),
        "label": "heads",
    }
    parts = {"provider": "sum", "members": [heads, {"provider": "length-window", "unit": "characters", "low": 12, "soft": 12}]}
    rubric = {"provider": "rubric", "judge": {"name": "openai", "url": judge_url}, "criteria_column": "rubric"}
    judge = {"provider": "judge", "judge": {"name": "transformers", "model": str(folder / "judge")}, "min_label_mass": 1e-6}
    weights = {"right": 1.0, "format": 0.2, "agreement": 0.5}
    remote = {"provider": "remote", "url": reward_url, "protocol": "rm-plugins"}
    agent = [on_the_wall, {"provider": "tool-count", "high": 1}, {"provider": "tool-success", "no_calls": 0.0}]
    return [
        reward_func({**rubric, "on_error": "abstain"}, name="rubric"),
        reward_func({**judge, "labels": {"A": 1.0, "B": 0.0}}, name="judge"),
        reward_func({"provider": "verdict", "weights": weights}, name="verdict"),
        *reward_funcs(parts, ["heads/helpful", "heads/kind", "length-window"], name="parts"),
        reward_func(remote, name="remote"),
        reward_func({**remote, "transform": "zscore-in-group"}, name="compared remote"),
        reward_func({"provider": "sum", "members": agent}, name="agent"),
    ]


class Trainer(GRPOTrainer):  # type: ignore[misc]  # TRL is untyped here
    """Completions are given by the prompt and by their number in its group."""

    def _generate_single_turn(self, prompt_ids: Any, *others: Any, **named: Any) -> Any:
        tokenizer: Any = self.processing_class
        answers = []
        for place, text in enumerate(tokenizer.batch_decode(prompt_ids)):
            drawn = ANSWERS[int(chance(text, str(place % GENERATIONS)) * len(ANSWERS))]
            answers.append(("[[A]]" if "<tool_response>" in text else drawn) + tokenizer.eos_token)
        return tokenizer(answers, add_special_tokens=False)["input_ids"], None


def trained(folder: Path, urls: tuple[str, str], processes: int) -> dict[str, Any]:
    """What each reward gave in this process in each step, for which pairs, what was logged, and the rows of each run of the classifier.

    Args:
        folder: Has the models.
        urls: Of the servers.
        processes: How many processes train.
    """
    rewards = rewards_of(folder, *urls)
    kept: dict[str, list[Any]] = {reward.__name__: [] for reward in rewards}
    pairs: list[list[Any]] = []
    for reward in rewards:

        def keep(samples: Any, scores: rm.Scores, state: Any, name: str = reward.__name__) -> None:
            kept[name].append(values_to_json(scores.values))
            if name == "verdict":
                pairs.append([[sample.columns["pair"], sample.columns["order"]] for sample in samples])

        reward.watchers.append(keep)
    forwards = counted(rewards)
    trainer = Trainer(
        model=str(folder / "agent"),
        reward_funcs=list(rewards),
        args=grpo_config(
            folder / "agents",
            max_steps=BATCHES,
            per_device_train_batch_size=PROMPTS * GENERATIONS // 2 // processes,
            gradient_accumulation_steps=2,
            num_generations=GENERATIONS,
            max_completion_length=256,
            multi_objective_aggregation="normalize_then_sum",
            reward_weights=[1.0, 0.5, 1.0, 0.7, 0.3, 2.0, 1.0, 0.5, 1.0],
            learning_rate=1e-3,
            shuffle_dataset=False,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(ROWS),
        environment_factory=Wall,
    )
    trainer.train()
    for reward in rewards:
        reward.provider.close()
    return {"rewards": kept, "pairs": pairs, "logs": trainer.state.log_history, "forwards": forwards}


def counted(rewards: Sequence[RewardFunction]) -> list[int]:
    """The number of rows of every call of the classifier from now on."""
    calls: list[int] = []
    shared = next(reward.provider for reward in rewards if reward.__name__ == "parts/length-window")
    trained = shared.children["members[0]"].trained  # type: ignore[attr-defined]
    outputs = trained.outputs

    def count(samples: Sequence[Any]) -> Any:
        calls.append(len(samples))
        return outputs(samples)

    trained.outputs = count
    return calls
