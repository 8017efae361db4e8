"""The pytest plugin that puts our classes into TRL's place before TRL's tests import them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from torch import nn

import rm_plugins_trl
from tests.trl_own_tests.selection import HAS_PPO, NEEDS_THE_HUB, SELECTED
from tests.trl_own_tests.stand_in_datasets import load_dataset

DIFFERENCES = Path(__file__).with_name("differences.toml")
REPLACED = {
    "RewardConfig": ("trl", "trl.trainer", "trl.trainer.reward_config", "trl.trainer.reward_trainer"),
    "RewardTrainer": ("trl", "trl.trainer", "trl.trainer.reward_trainer"),
}
REPLACED_WITH_PPO = {
    "PPOConfig": ("trl.experimental.ppo", "trl.experimental.ppo.ppo_config", "trl.experimental.ppo.ppo_trainer"),
    "PPOTrainer": ("trl.experimental.ppo", "trl.experimental.ppo.ppo_trainer"),
}
TRAINERS_WITH_REWARDS = ("GRPOTrainer", "RLOOTrainer")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what is replaced, and what may fail."""
    group = parser.getgroup("TRL's own tests")
    group.addoption("--trls-own", action="store_true", help="replace no class, to see that the tests themselves pass")
    group.addoption("--differences", type=Path, default=DIFFERENCES, metavar="FILE", help="which tests may fail, and why")
    group.addoption(
        "--stand-ins", type=Path, metavar="CACHE", help="write models into this cache of the hub, and replace datasets"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make stand-ins, where the hub is out of reach, and replace TRL's classes."""
    if cache := config.getoption("--stand-ins"):
        datasets.load_dataset = load_dataset
        if not hasattr(config, "workerinput"):  # one process writes for those that pytest-xdist starts
            # Only here: it keeps the process offline.
            from tests.trl_own_tests.stand_in_models import write_hub_cache

            write_hub_cache(cache)
    vars(import_module("trl.import_utils"))["__getattr__"] = _availability
    if not config.getoption("--trls-own"):
        replace_classes()


def pytest_report_header(config: pytest.Config) -> str:
    """Whose classes are tested."""
    return f"TRL {trl.__version__}, tested: {'its own classes' if config.getoption('--trls-own') else 'our classes'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that concern us and can run, and expect those to fail that a difference makes fail."""
    kept = [item for item in items if SELECTED.get(_file(item), "") in item.nodeid.partition("::")[2]]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
    if config.getoption("--stand-ins"):
        for item in items:
            if item.name in NEEDS_THE_HUB:
                item.add_marker(pytest.mark.skip(reason=NEEDS_THE_HUB[item.name]))
    if not config.getoption("--trls-own"):
        _expect(tomllib.loads(config.getoption("--differences").read_text("utf-8")), items)


def replace_classes() -> None:
    """Bind TRL's names to our classes, and wrap the reward functions of its other trainers."""
    for name, modules in {**REPLACED, **(REPLACED_WITH_PPO if HAS_PPO else {})}.items():
        ours = getattr(rm_plugins_trl, name)
        for module in modules:
            setattr(import_module(module), name, ours)
    for name in TRAINERS_WITH_REWARDS:
        trainer = getattr(trl, name)
        trainer.__init__ = _with_our_rewards(trainer.__init__)


def _expect(differences: Mapping[str, str], items: Sequence[pytest.Item]) -> None:
    for item in items:
        name = f"{_file(item)}::{item.nodeid.partition('::')[2]}"
        for pattern, reason in differences.items():
            if re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name):
                item.add_marker(pytest.mark.xfail(strict=True, reason=reason))


def _availability(name: str) -> Callable[[], bool]:
    """What the installed TRL's ``trl.import_utils`` lacks that a checkout of another version asks it: whether a package is installed."""
    package = re.fullmatch(r"is_(\w+)_available", name)
    if package is None:
        raise AttributeError(f"trl.import_utils has no {name!r}.")
    return lambda: find_spec(package[1]) is not None


def _file(item: pytest.Item) -> str:
    # Below the checkout's tests/, which pytest is handed as a link.
    return item.nodeid.partition("::")[0].partition("/")[2]


def _with_our_rewards(init: Callable[..., None]) -> Callable[..., None]:
    parameters = signature(init)

    @wraps(init)
    def with_our_rewards(*args: Any, **kwargs: Any) -> None:
        given = parameters.bind(*args, **kwargs)
        rewards = given.arguments.get("reward_funcs")
        if isinstance(rewards, list):
            given.arguments["reward_funcs"] = [_ours(reward) for reward in rewards]
        elif rewards is not None:
            given.arguments["reward_funcs"] = _ours(rewards)
        init(*given.args, **given.kwargs)

    return with_our_rewards


def _ours(reward: Any) -> Any:
    # A model with a tokenizer of its own, which the trainer is given beside it, stays TRL's.
    return reward if isinstance(reward, nn.Module) else rm_plugins_trl.reward_func(reward)


if find_spec("pytest_datadir") is None:

    @pytest.fixture
    def lazy_shared_datadir(request: pytest.FixtureRequest) -> Path:
        """The folder of the tests' files, as pytest-datadir has it; nothing is written there."""
        return request.path.parent / "data"
