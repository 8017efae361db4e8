"""TRL trains with a reward on another machine: the same numbers as beside it, also where the server is restarted meanwhile."""

from __future__ import annotations

import importlib
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOTrainer

import rm_plugins as rm
from rm_plugins_trl import reward_func
from tests.servers import RewardServer, workers_of
from tests.trl.conftest import TRL_WARNINGS, grpo_config, newest_trl

pytestmark = TRL_WARNINGS

PROMPTS = Dataset.from_list([{"prompt": text} for text in ("Name a colour.", "one, two", "2+2?", "Is the sea salty?")])


class Restart(TrainerCallback):  # type: ignore[misc]  # of a library that is taken as untyped
    """Kills the server behind the first step's end and starts it again while the next batch waits to be scored."""

    def __init__(self, server: RewardServer) -> None:
        self.server = server
        self.waiting = threading.Thread(target=self._start_later)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.server.stop(signal.SIGKILL)
            self.waiting.start()

    def _start_later(self) -> None:
        time.sleep(1.0)
        self.server.start()


class KillReplicas(TrainerCallback):  # type: ignore[misc]  # of a library that is taken as untyped
    """Kills one replica of a server at the end of the first step, and the other at the end of the third, when the first is back."""

    def __init__(self, server: RewardServer) -> None:
        self.server = server

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (1, 3):
            self._await_both()
            os.kill(sorted(workers_of(self.server.process.pid))[0], signal.SIGKILL)

    def _await_both(self) -> None:
        deadline = time.monotonic() + 120
        while httpx2.get(f"{self.server.url}/health").json()["workers"]["serving"] < 2:
            assert time.monotonic() < deadline, self.server.log
            time.sleep(0.1)


def train(reward: rm.Provider, folder: Path, policy: Path, out: Path, callback: TrainerCallback) -> list[dict[str, float]]:
    """What a GRPO training of four steps logs, with a reward elsewhere and the same one here."""
    trainer = GRPOTrainer(
        model=str(policy),
        reward_funcs=[reward_func(reward, name="remote"), reward_func(folder, name="local")],
        args=grpo_config(out, max_steps=4),
        train_dataset=PROMPTS,
        callbacks=[callback],
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def check_equal(logged: list[dict[str, float]], remote: rm.Provider) -> None:
    """The reward elsewhere gave the numbers of the one here, each time."""
    assert len(logged) == 4
    for entry in logged:
        for figure in ("mean", "std"):
            assert entry[f"rewards/remote/{figure}"] == pytest.approx(entry[f"rewards/local/{figure}"], abs=1e-4)
    assert remote.counts["samples"] == 16
    assert remote.counts["errors"] == remote.counts["abstained"] == 0


@newest_trl
def test_grpo_survives_a_server_restarted_in_the_middle(tiny_decoder: Any, tiny_policy: Path, tmp_path: Path) -> None:
    folder = tiny_decoder()
    with RewardServer(folder) as server:
        remote = rm.load(server.url)
        restart = Restart(server)
        logged = train(remote, folder, tiny_policy, tmp_path, restart)
        restart.waiting.join()
    check_equal(logged, remote)
    assert remote.counts["connection_errors"] > 0, "the server was not missed: the restart came too late to show anything"


@newest_trl
def test_grpo_continues_while_replicas_die(tiny_decoder: Any, tiny_policy: Path, tmp_path: Path) -> None:
    folder = tiny_decoder()
    with RewardServer(folder, "--devices", "cpu,cpu") as server:
        remote = rm.load(server.url)
        logged = train(remote, folder, tiny_policy, tmp_path, KillReplicas(server))
        log = server.log
    check_equal(logged, remote)
    assert len(re.findall(r"\(replica \d on cpu\) ended with exit status -9; it is replaced", log)) == 2, log


def test_ppo_gets_the_rewards_that_it_gets_from_the_same_model_here(tiny_decoder: Any, tmp_path: Path) -> None:
    ppo = importlib.import_module("rm_plugins_trl.ppo")
    folder = tiny_decoder()
    policy = tiny_policy_of(folder)
    prompts = Dataset.from_list([{"prompt": text} for text in ("Name a colour.", "one, two")] * 4)

    def logged(reward: str | dict[str, Any]) -> list[float]:
        args = ppo.PPOConfig(
            output_dir=str(tmp_path / "out"),
            reward_model_path=reward,
            per_device_train_batch_size=4,
            num_ppo_epochs=2,  # TRL takes the variance over them
            num_mini_batches=1,
            response_length=8,
            total_episodes=8,
            num_sample_generations=0,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
        )
        trainer = ppo.PPOTrainer(args=args, model=policy(), train_dataset=prompts)
        trainer.train()
        return [entry["objective/scores"] for entry in trainer.state.log_history if "objective/scores" in entry]

    with RewardServer(folder) as server:
        over_the_wire = logged(server.url)
    spec = tmp_path / "local.yaml"
    # Inside of a sum, the model is asked for the samples' texts; TRL would run it on the policy's token ids by itself.
    spec.write_text(f"provider: sum\nmembers: [{folder}]\n", encoding="utf-8")
    here = logged(str(spec))
    assert len(over_the_wire) == 2
    assert over_the_wire == pytest.approx(here, abs=1e-4)


def tiny_policy_of(folder: Path) -> Any:
    """Makes the same random policy for the tokenizer in a folder every time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make() -> Any:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config)
        model.config._name_or_path = str(folder)
        return model

    return make
