"""The small files that engines are pointed at, as ``rm-plugins adapter`` writes them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rm_plugins.errors import SpecError
from rm_plugins.version import __version__
from rm_plugins_engines.engine_reward import NoReward
from rm_plugins_engines.prompts import AUTO, COLUMN, PromptSource


@dataclass(frozen=True, slots=True)
class EngineFile:
    """How an engine is given a reward.

    Args:
        engine: Its name, with the version that this was checked with.
        flags: The engine's settings for a file, one per line, given the file's path.
        body: The file after the spec, given the reward's arguments by name, as Python.
        prompt: The default of its prompt source; None if the engine hands over the messages.
        column_in: What the engine hands the row over as, where a prompt can be.
        has_text: Whether the engine hands over the prompt as text.
        has_details: Whether it has a place for the details of a reward.
        drops: What ``drop`` does; empty if the engine cannot leave samples out.
        groups: Whether it can hand over all completions of a prompt together.
        in_step: Whether its processes call a reward at the same steps.
    """

    engine: str
    flags: Callable[[Path], Sequence[str]]
    body: Callable[[Mapping[str, str]], str]
    prompt: str | None = None
    has_details: bool = True
    drops: str = ""
    column_in: str = "the row"
    has_text: bool = True
    groups: bool = False
    in_step: bool = False


def _for_hydra(path: Path) -> str:
    """A path as the value of a Hydra override, quoted for Hydra and then for the shell.

    >>> print(_for_hydra(Path("/home/me/reward.py")), _for_hydra(Path("/home/a,b/reward.py")))
    /home/me/reward.py '"/home/a,b/reward.py"'
    """
    text = str(path)
    if re.fullmatch(r"[\w/.-]+", text, re.ASCII):
        return text
    return shlex.quote('"' + re.sub(r'(\\*)("|\$\{)', r"\1\1\\\2", text) + '"')


def _called(arguments: Mapping[str, str]) -> str:
    """The arguments of a call, after the spec."""
    return ", ".join(["SPEC", *(f"{name}={value}" for name, value in arguments.items())])


def _verl_flags(path: Path) -> Sequence[str]:
    return [
        "The reward manager, for rewards that read the prompt:",
        "  python -m verl.trainer.main_ppo ... \\",
        "    reward.reward_manager.source=importlib reward.reward_manager.name=RewardManager \\",
        f"    reward.reward_manager.module.path={_for_hydra(path)}",
        "Or the function, with the prompt in the dataset's extra_info:",
        f"  python -m verl.trainer.main_ppo ... reward.custom_reward_function.path={_for_hydra(path)} \\",
        "    reward.custom_reward_function.name=compute_score",
        "Not with verl's manager rate_limited, which gives 0 to a sample whose reward fails or takes too long.",
    ]


def _verl_body(arguments: Mapping[str, str]) -> str:
    of_manager = _called({name: value for name, value in arguments.items() if name != "prompt"})
    return f"""from rm_plugins_engines.verl import VerlReward, reward_manager

REWARD = VerlReward({_called(arguments)})


async def compute_score(data_source, solution_str, ground_truth, extra_info=None, **others):
    return await REWARD.compute_score(data_source, solution_str, ground_truth, extra_info, **others)


def compute_score_sync(data_source, solution_str, ground_truth, extra_info=None, **others):
    return REWARD.compute_score_sync(data_source, solution_str, ground_truth, extra_info, **others)


def __getattr__(name):  # the manager's class is made when verl asks for it
    if name == "RewardManager":
        return reward_manager({of_manager})
    raise AttributeError(name)
"""


def _openrlhf_flags(path: Path) -> Sequence[str]:
    if "," in str(path):
        raise SpecError(f"OpenRLHF splits --reward.remote_url at commas, so the path {str(path)!r} must not have one.")
    return [f"  python3 -m openrlhf.cli.train_ppo_ray ... --reward.remote_url {shlex.quote(str(path))}"]


def _openrlhf_body(arguments: Mapping[str, str]) -> str:
    return f"""from rm_plugins_engines.openrlhf import OpenRLHFReward

REWARD = OpenRLHFReward({_called(arguments)})


def reward_func(queries, prompts, labels, **others):
    return REWARD.reward_func(queries, prompts, labels, **others)
"""


def _swift_body(arguments: Mapping[str, str]) -> str:
    return f"""from rm_plugins_engines.swift import register

register({_called(arguments)})
"""


def _slime_body(arguments: Mapping[str, str]) -> str:
    return f"""from rm_plugins_engines.slime import SlimeReward

REWARD = SlimeReward({_called(arguments)})


async def custom_rm(args, sample, **others):
    return await REWARD.custom_rm(args, sample, **others)


def keep_group(args, samples, **others):
    return REWARD.keep_group(args, samples, **others)
"""


def _slime_flags(path: Path) -> Sequence[str]:
    return [
        f"  PYTHONPATH={shlex.quote(str(path.parent))}:$PYTHONPATH python3 train.py ... --custom-rm-path {path.stem}.custom_rm",
        "With --group-rm, the completions of a prompt are scored together. To leave out groups with a sample without a reward, write the",
        f"adapter with --no-reward drop, and add --dynamic-sampling-filter-path {path.stem}.keep_group",
    ]


def _nemo_gym_body(arguments: Mapping[str, str]) -> str:
    return f"""from rm_plugins_engines.nemo_gym import NeMoGymReward

REWARD = NeMoGymReward({_called(arguments)})
app = REWARD.app()

if __name__ == "__main__":
    REWARD.resources_server().run_webserver()
"""


def _nemo_gym_flags(path: Path) -> Sequence[str]:
    return [
        "In NeMo Gym, as the entry point of a resources server (copy this file to resources_servers/NAME/app.py):",
        "  NAME: {resources_servers: {NAME: {entrypoint: app.py, domain: other, verified: false}}}",
        "Or alone, for anything that posts to /verify:",
        f"  PYTHONPATH={shlex.quote(str(path.parent))} uvicorn {path.stem}:app --port 8001",
    ]


def _nemo_rl_body(arguments: Mapping[str, str]) -> str:
    return f"""import ray

from rm_plugins_engines.nemo_rl import environment, register

RewardEnvironment = ray.remote(environment({_called(arguments)}))
register("rm_plugins", f"{{__name__}}.RewardEnvironment")
"""


def _nemo_rl_flags(path: Path) -> Sequence[str]:
    return [
        f"  PYTHONPATH={shlex.quote(str(path.parent))} uv run python -c \\",
        f"    \"import {path.stem}, runpy; runpy.run_path('examples/run_grpo.py', run_name='__main__')\" \\",
        "    --config CONFIG.yaml data.default.env_name=rm_plugins ++env.rm_plugins={}",
    ]


def _areal_body(arguments: Mapping[str, str]) -> str:
    return f"""from rm_plugins_engines.areal import AReaLReward

REWARD = AReaLReward({_called(arguments)})


def reward_fn(*passed, **data):  # passed: the prompt, the completion, and the token ids of both
    return REWARD.reward_fn(*passed, **data)


def __getattr__(name):  # the workflow's class is made when AReaL asks for it
    if name == "Workflow":
        return REWARD.workflow()
    raise AttributeError(name)
"""


def _areal_flags(path: Path) -> Sequence[str]:
    return [
        f"  PYTHONPATH={shlex.quote(str(path.parent))}:$PYTHONPATH python3 train.py --config CONFIG.yaml scheduler.type=local",
        "On several machines, set PYTHONPATH on each. In the training script:",
        f'  trainer.train(workflow="{path.stem}.Workflow", workflow_kwargs=dict(gconfig=config.gconfig, tokenizer=config.tokenizer_path))',
        f'"{path.stem}.reward_fn" is for other workflows. AReaL runs it in other processes, and gives 0 to what takes longer than 15 s.',
    ]


def _verifiers_body(arguments: Mapping[str, str]) -> str:
    return f"""from rm_plugins_engines.verifiers import VerifiersReward

REWARD = VerifiersReward({_called(arguments)})


async def reward(task, trace):
    return await REWARD.reward(task, trace)
"""


_FUNCTIONS = """from rm_plugins_engines.python_path import look_for_functions_in

look_for_functions_in({folder})

"""

ENGINES: Mapping[str, EngineFile] = {
    "verl": EngineFile("verl 0.9.1", _verl_flags, _verl_body, prompt=f"{COLUMN}prompt", column_in="extra_info", has_text=False),
    "openrlhf": EngineFile(
        "OpenRLHF 0.11.2",
        _openrlhf_flags,
        _openrlhf_body,
        prompt=AUTO,
        column_in="the label",
    ),
    "swift": EngineFile(
        "ms-swift 4.6.0",
        lambda path: [
            f"  swift rlhf --rlhf_type grpo ... --external_plugins {shlex.quote(str(path))} --reward_funcs rm_plugins",
            "or --reward_funcs rm_plugins_async, or with a model of ms-swift's own: --reward_model MODEL --reward_model_plugin rm_plugins",
        ],
        _swift_body,
        has_details=False,
        groups=True,
        in_step=True,
    ),
    "slime": EngineFile(
        "slime of August 2026",
        _slime_flags,
        _slime_body,
        prompt=AUTO,
        drops="leaves out the group",
        column_in="metadata",
        groups=True,
    ),
    "nemo-gym": EngineFile(
        "NeMo Gym of August 2026", _nemo_gym_flags, _nemo_gym_body, drops="set aside when rollouts are collected"
    ),
    "nemo-rl": EngineFile("NeMo-RL of August 2026", _nemo_rl_flags, _nemo_rl_body, prompt=AUTO, column_in="extra_env_info"),
    "areal": EngineFile("AReaL 1.0.4", _areal_flags, _areal_body, prompt=f"{COLUMN}messages", has_details=False),
    "verifiers": EngineFile(
        "verifiers 0.4.0",
        lambda path: [
            "  vf-eval @ CONFIG.toml, with these lines in CONFIG.toml:",
            "    [env.taskset.task.rewards.rm_plugins]",
            f"    fn = {json.dumps(f'{path}:reward', ensure_ascii=False)}",
        ],
        _verifiers_body,
    ),
}


def adapter_text(
    engine: str,
    spec: str,
    path: Path,
    *,
    no_reward: NoReward = "raise",
    prompt: str | None = None,
    details: Sequence[str] = (),
    python_path: str = "",
) -> str:
    """The text of an adapter.

    Args:
        engine: A key of `ENGINES`.
        spec: The spec, with an absolute path if it is a file.
        path: Where it will be written, absolute.
        no_reward: What a sample without a reward becomes.
        prompt: Where the prompt comes from; the engine's default if None.
        details: The details of the reward to log.
        python_path: The folder of the reward's functions, if Python does not find them otherwise.

    Raises:
        SpecError: The engine has no such setting, or it has a wrong value; or it cannot read such a path.
        UnsupportedError: The engine cannot leave samples out.
    """
    facts = ENGINES[engine]
    if prompt is not None and facts.prompt is None:
        raise SpecError(f"{facts.engine} hands over the messages of the prompt, so there is no --prompt to choose.")
    if details and not facts.has_details:
        raise SpecError(f"{facts.engine} has no place for the details of a reward, so there is no --detail to choose.")
    arguments = {"no_reward": repr(no_reward)}
    if facts.prompt is not None:
        source = PromptSource(prompt or facts.prompt, facts.engine, facts.column_in, has_text=facts.has_text)
        arguments["prompt"] = repr(source.source)
    if details:
        arguments["details"] = repr(list(details))
    lines = [
        f"Gives a reward to {facts.engine}. Written by rm-plugins {__version__}: rm-plugins adapter {engine}",
        "",
        *facts.flags(path),
    ]
    header = "\n".join(f"# {line}".rstrip() for line in lines)
    functions = _FUNCTIONS.format(folder=repr(python_path)) if python_path else ""
    return f"{header}\n\n{functions}SPEC = {spec!r}\n\n{facts.body(arguments)}"
