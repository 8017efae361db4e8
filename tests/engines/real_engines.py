"""A program that scores the same samples through the dispatch code of real engines, each called as its trainer calls it.

Usage: python -m tests.engines.real_engines FOLDER. The folder has ``reward.yaml`` and ``tokenizer``, and gets ``results.json``. The engines
are imported from the Python path; what they import beside their dispatch code is replaced by stand-ins.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from rm_plugins_engines.adapter_files import adapter_text
from rm_plugins_engines.shared_reward import shared_reward
from rm_plugins_engines.swift import orm
from tests.engines.engine_samples import engine_rows
from tests.engines.stand_ins import Anything, stand_in_for

ROWS = engine_rows()
NOT_NEEDED = (
    *(
        "ray",
        "codetiming",
        "modelscope",
        "swift.infer_engine",
        "swift.template",
        "pylatexenc",
        "anthropic",
        "tenacity",
        "mcp",
        "zmq",
    ),
    *(
        "prime_sandboxes",
        "prime_tunnel",
        "prime_runs",
        "gepa",
        "tomli_w",
        "loguru",
        "msgpack",
        "colorlog",
        "pybase64",
        "flask",
        "torchdata",
    ),
    *(
        "areal.infra",
        "areal.engine",
        "areal.experimental",
        "areal.api.cli_args",
        "areal.utils.perf_tracer",
        "areal.utils.stats_tracker",
    ),
    *("areal.utils.hf_utils", "areal.workflow_context", "swift.dataset", "json_repair", "lark"),
    *("hydra", "cachetools"),
)


def written(folder: Path, engine: str, name: str = "reward", **settings: Any) -> Path:
    """The adapter's file, as the command writes it."""
    path = folder / f"{engine}_{name}.py"
    path.write_text(adapter_text(engine, str(folder / "reward.yaml"), path, **settings), encoding="utf-8")
    return path


def verl(folder: Path) -> dict[str, Any]:
    """verl's reward loop with its own manager and with ours, and how it collates the extra information."""
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from verl import DataProto
    from verl.experimental.agent_loop import agent_loop
    from verl.experimental.reward_loop import reward_loop
    from verl.trainer.ppo.reward import load_reward_manager

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    path = written(folder, "verl", no_reward=-7.5, details=["member/0"])
    ids = [tokenizer(row["completion"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"] for row in ROWS]
    longest = max(map(len, ids))
    responses = torch.tensor([[*row, *[tokenizer.pad_token_id] * (longest - len(row))] for row in ids])
    mask = torch.tensor([[1] * (2 + len(row)) + [0] * (longest - len(row)) for row in ids])
    prompts = torch.ones((len(ids), 2), dtype=torch.int64)

    def data(**columns: Any) -> Any:
        extra = {name: np.array([*values, None], dtype=object)[:-1] for name, values in columns.items()}
        batch = TensorDict({"prompts": prompts, "responses": responses, "attention_mask": mask}, batch_size=len(ids))
        return DataProto(batch=batch, non_tensor_batch=extra)

    def worker_with(manager: dict[str, Any], function: dict[str, Any]) -> tuple[Any, asyncio.AbstractEventLoop]:
        config = OmegaConf.create(
            {
                "reward": {
                    "reward_manager": manager,
                    "custom_reward_function": function,
                    "reward_model": {"enable": False},
                    "sandbox_fusion": None,
                }
            }
        )
        worker = object.__new__(reward_loop.RewardLoopWorker)
        worker.config = config
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        worker.reward_manager = load_reward_manager(config, tokenizer)
        return worker, loop

    def through(manager: dict[str, Any], function: dict[str, Any], given: Any) -> Any:
        worker, loop = worker_with(manager, function)
        controller = object.__new__(reward_loop.RewardLoopManager)
        controller.reward_model_manager = None
        controller.reward_manager_cls = type(worker.reward_manager)
        called = SimpleNamespace(remote=lambda chunk: loop.run_until_complete(worker.compute_score_batch(chunk)))
        controller.reward_loop_workers = [SimpleNamespace(compute_score_batch=called)]
        reward_loop.ray = SimpleNamespace(get=list)
        scored = controller.compute_rm_score(given)
        lengths = [len(row) for row in ids]
        at_end = scored.batch["rm_scores"][torch.arange(len(ids)), torch.tensor(lengths) - 1]
        extra = {name: column.tolist()[:3] for name, column in scored.non_tensor_batch.items()}
        return {"values": at_end.tolist(), "extra": extra}

    def of_several_outputs() -> list[float]:
        """The reward of the last of two outputs of a trajectory, whose first one is longer, as verl's agent loop asks for it."""
        worker, loop = worker_with(ours, {"path": None})
        agent_loop.simple_timer = lambda name, timing: nullcontext(timing.update({name: 0.0}))
        rewarded = []
        for row, last in zip(ROWS[:8], ids, strict=False):
            lengths = [(9, [5] * (len(last) + 40)), (2, last)]
            outputs = [
                agent_loop.AgentLoopOutput(
                    prompt_ids=[7] * length, response_ids=response, response_mask=[1] * len(response), metrics={}
                )
                for length, response in lengths
            ]
            loops = SimpleNamespace(
                reward_loop_worker_handles=[SimpleNamespace(compute_score=SimpleNamespace(remote=worker.compute_score))],
                _compute_multi_modal_inputs=lambda *_: {},
                _compute_position_ids=lambda tokens, *_: torch.arange(tokens.shape[1])[None],
                _get_mm_processor_kwargs=lambda *_: {},
            )
            columns = {"raw_prompt": row["messages"], "data_source": "test", "reward_model": {"ground_truth": row["solution"]}}
            loop.run_until_complete(agent_loop.AgentLoopWorker._compute_score(loops, outputs, columns))
            rewarded.append(outputs[-1].reward_score)
        return rewarded

    reward_model = [{"ground_truth": row["solution"]} for row in ROWS]
    shared = {"data_source": ["test"] * len(ROWS), "reward_model": reward_model}
    as_column = [{"prompt": np.array(row["messages"], dtype=object), "solution": row["solution"]} for row in ROWS]
    raw = [np.array(row["messages"], dtype=object) for row in ROWS]
    ours = {"source": "importlib", "name": "RewardManager", "module": {"path": str(path)}}
    naive = {"source": "register", "name": "naive"}
    return {
        "manager": through(ours, {"path": None}, data(**shared, raw_prompt=raw)),
        "several outputs": {"values": of_several_outputs()},
        "function": through(naive, {"path": str(path), "name": "compute_score"}, data(**shared, extra_info=as_column)),
        "synchronous function": through(
            naive, {"path": str(path), "name": "compute_score_sync"}, data(**shared, extra_info=as_column)
        ),
    }


def openrlhf(folder: Path) -> dict[str, Any]:
    """OpenRLHF's executor of single turns, with a rendered prompt, whose messages are in the label; and with the query unchanged."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    async def scored(path: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        executor = SingleTurnAgentExecutor(str(path))

        async def one(row: dict[str, Any]) -> dict[str, Any]:
            prompt = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
            answer = tokenizer(row["completion"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]

            async def generate(*args: Any, **kwargs: Any) -> Any:
                return SimpleNamespace(outputs=[SimpleNamespace(token_ids=answer, finish_reason="stop", logprobs=None)])

            label = json.dumps({"messages": row["messages"], "solution": row["solution"]})
            sampling = SimpleNamespace(max_tokens=64, logprobs=None)
            executed: dict[str, Any] = await executor.execute(
                prompt, label, sampling, 1024, tokenizer, SimpleNamespace(generate=generate)
            )
            return executed

        return await asyncio.gather(*map(one, rows))

    results = {}
    for source, rows in (("column:messages", ROWS), ("rendered", ROWS), ("auto", ROWS[:1])):
        path = written(folder, "openrlhf", source.partition(":")[0], prompt=source)
        outputs = asyncio.run(scored(path, rows))
        # As samples_generator.py makes tensors of them.
        values = [None if out["reward"] is None else float(torch.tensor([out["reward"]])) for out in outputs]
        results[source] = {
            "values": values,
            "extra": {name: float(value.flatten()[0]) for name, value in outputs[0]["extra_logs"].items()},
        }
    return results


def swift(folder: Path) -> dict[str, Any]:
    """ms-swift's computation of rewards, with the synchronous and asynchronous class and the model plug-in."""

    def rows_to_batched(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [row.get(name) for row in rows] for name in {name for row in rows for name in row}}

    # Of its package for datasets, which imports hubs and more, only these two are needed.
    vars(importlib.import_module("swift.dataset"))["RowPreprocessor"] = SimpleNamespace(rows_to_batched=rows_to_batched)
    vars(importlib.import_module("swift.dataset.preprocessor.core"))["_pair_keys"] = (
        "images",
        "audios",
        "videos",
        "tools",
        "objects",
    )
    from swift.rewards import orms, rm_plugins
    from swift.rl_core.advantage import compute_advantages
    from swift.rl_core.data import GRPOSample
    from swift.rl_core.grpo_algorithm import compute_rewards_per_func
    from swift.utils.utils import import_external_file

    import_external_file(str(written(folder, "swift")))
    args = SimpleNamespace(reward_funcs=["rm_plugins", "rm_plugins_async"])
    samples = [
        GRPOSample.from_row(
            {"messages": [*row["messages"], {"role": "assistant", "content": row["completion"]}], "solution": row["solution"]}
        )
        for row in ROWS
    ]

    def summed(function: Callable[..., Any]) -> float:
        """The reward that ms-swift trains with for a sample whose only reward is a function's."""
        per_function = compute_rewards_per_func(samples[:1], [function], [None], torch.device("cpu"))
        _, rewards = compute_advantages(per_function, torch.ones(1), num_generations=1)
        return float(rewards[0])

    ours = orm("tests.engines.failing:abstains", no_reward=-5.0)(args=args)
    functions = [orms["rm_plugins"](args=args), orms["rm_plugins_async"](args=args), torch.nn.Identity()]
    plugins = [None, None, rm_plugins["rm_plugins"](model=None, template=None)]
    columns = compute_rewards_per_func(samples, functions, plugins, torch.device("cpu")).T.tolist()
    scored = {name: {"values": values} for name, values in zip(("function", "asynchronous", "model"), columns, strict=True)}
    return {**scored, "without": {"their None": summed(lambda completions, **_: [None]), "ours": summed(ours)}}


def verifiers(folder: Path) -> dict[str, Any]:
    """verifiers' scoring of tasks, with the function plugged in as its configuration does it."""
    from verifiers.v1.agent import AgentConfig
    from verifiers.v1.configs.task import TaskConfig
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.task import Task, TaskData
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage

    class Solved(TaskData):  # type: ignore[misc]  # verifiers' class
        solution: str

    config = TaskConfig(rewards={"rm_plugins": {"fn": f"{written(folder, 'verifiers')}:reward", "weight": 2.0}})
    kinds: dict[str, Callable[..., Any]] = {"system": SystemMessage, "user": UserMessage}

    async def one(row: dict[str, Any]) -> Any:
        data = Solved(prompt="unused", solution=row["solution"])
        messages = [kinds[message["role"]](content=message["content"]) for message in row["messages"]]
        nodes = [MessageNode(message=message, parent=place - 1 if place else None) for place, message in enumerate(messages)]
        nodes.append(MessageNode(message=AssistantMessage(content=row["completion"]), parent=len(nodes) - 1, sampled=True))
        trace = Trace(task=TraceTask(type="Task", data=data), agent=AgentInfo(config=AgentConfig()), nodes=nodes)
        await Task[Solved](data, config).score(trace)
        return trace

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(one, ROWS))

    traces = asyncio.run(all_of_them())
    values = [trace.rewards["rm_plugins"].score for trace in traces]
    return {"reward": {"values": values, "extra": {"metrics": dict(traces[0].metrics), "weighted": traces[0].reward}}}


def areal(folder: Path) -> dict[str, Any]:
    """AReaL's workflow of single turns as ours, and its pool of processes with the function."""
    sys.path.insert(0, str(folder))
    reward: Any = importlib.import_module(written(folder, "areal").stem)
    from areal.api.reward_api import AsyncRewardWrapper

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    workflow = reward.Workflow(gconfig=Anything(), tokenizer=tokenizer)

    def decoded(row: dict[str, Any]) -> tuple[str, str]:
        prompt = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        return prompt, row["completion"] + tokenizer.eos_token

    def task_of(row: dict[str, Any]) -> dict[str, Any]:
        named_alike = {"prompt": "another", "completions": ["another"], "prompt_ids": [3], "completion_ids": [4]}
        return {"messages": row["messages"], "solution": row["solution"], **named_alike}

    async def of_workflow(row: dict[str, Any]) -> float:
        prompt, answer = decoded(row)
        tokens = SimpleNamespace(input_tokens=[1], output_tokens=tokenizer(answer, add_special_tokens=False)["input_ids"])
        return float(await workflow._compute_rewards(tokens, prompt, task_of(row)))

    async def all_of_them() -> list[float]:
        return await asyncio.gather(*map(of_workflow, ROWS))

    async def pooled() -> list[float]:
        wrapper = AsyncRewardWrapper(reward.reward_fn, timeout_seconds=600, max_workers=1, max_retries=0)
        calls = (wrapper(*decoded(row), [1], [2], **task_of(row)) for row in ROWS[:8])
        values: list[float] = await asyncio.gather(*calls)
        return values

    return {"workflow": {"values": asyncio.run(all_of_them())}, "pool of processes": {"values": asyncio.run(pooled())}}


def main(folder: Path) -> None:
    """Score with every engine, and write what each gave or how it failed."""
    stand_in_for(*NOT_NEEDED)
    results: dict[str, Any] = {}
    for engine in (verl, openrlhf, swift, verifiers, areal):
        before = dict(shared_reward(str(folder / "reward.yaml")).counts)
        try:
            results[engine.__name__] = engine(folder)
        except Exception:
            results[engine.__name__] = {"failed": traceback.format_exc()}
        after = shared_reward(str(folder / "reward.yaml")).counts
        results[engine.__name__]["counts"] = {name: after[name] - before.get(name, 0) for name in after}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
