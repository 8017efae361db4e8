"""What each of several processes does: trainings whose weights are sharded, killed and resumed ones, and evaluations."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers.modeling_utils
import transformers.trainer
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from torch import distributed

from rm_plugins.errors import DataError, SpecError, UnsupportedError
from rm_plugins.models.manifest import Manifest
from rm_plugins_trl import RewardEvaluation
from rm_plugins_trl.reward_training.resuming import checkpoint_of_all
from tests.sharded.launcher import run
from tests.sharded.training import FULL, SHARDED, evaluated, logged, rows, trainer_of

Case = Callable[[], None]
MODEL, FOLDER = sys.argv[1:3] if len(sys.argv) > 2 else ("", "")

STEPS = 20
LONG: dict[str, Any] = {
    "max_steps": STEPS,
    "save_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "regularizers": {"centering": 0.1},
}
BEST: dict[str, Any] = {
    "max_steps": 6,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "early_stopping_patience": 2,
    "metric_for_best_model": "eval_held/margin",
    "greater_is_better": False,  # so that the first step is the best
}
SHORT: dict[str, Any] = {"max_steps": 3, "save_strategy": "no"}
LORA: dict[str, Any] = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])}

UNEVEN: dict[str, Any] = {
    "given": {"train_dataset": Dataset.from_list(rows(7))},
    "gradient_accumulation_steps": 2,
    "max_steps": 4,  # two epochs
}
"""The last batch of an epoch has one row, the other processes none."""

VARIANTS: Mapping[str, dict[str, Any]] = {
    "grm": {"loss": "grm"},
    "odin": {"loss": "odin"},
    "members": {"members": 3, "bootstrap": True},
    "lora": {"given": LORA},
    "merged": {"given": LORA, "merge_adapter": True},
    "accumulated": {"gradient_accumulation_steps": 2},
    "uneven": UNEVEN,
}
"""Trainings that are the same in one process and in two that share the weights."""


def folder_of(name: str) -> Path:
    return Path(FOLDER) / name


def is_first() -> bool:
    return not distributed.is_initialized() or distributed.get_rank() == 0


def note(name: str, **facts: Any) -> None:
    """Write what a case found, in the first process."""
    if is_first():
        folder_of(f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")


def train(name: str, *, resume: str | bool = False, **settings: Any) -> Any:
    """Train into a folder, and note what was logged."""
    trainer = trainer_of(MODEL, folder_of(name), **settings)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.args.save_strategy == "no":
        trainer.save_model()
    note(name, logged=logged(trainer), evaluated=evaluated(trainer), steps=trainer.state.global_step)
    return trainer


def watched(**settings: Any) -> dict[str, Any]:
    """Settings of a training that is evaluated, on numbers of rows that no number of processes divides."""
    given = {
        "eval_dataset": Dataset.from_list(rows(5)),
        "callbacks": [RewardEvaluation({"held": rows(7)}, resamples=5)],
    }
    return {**settings, "given": given}


def copied(source: str, target: str) -> Path:
    """A copy of a training's folder."""
    if is_first():
        shutil.copytree(folder_of(source), folder_of(target))
    if distributed.is_initialized():
        distributed.barrier()
    return folder_of(target)


# --- In one process -------------------------------------------------------------------------------------------------------


def alone() -> None:
    train("long-alone", **watched(**LONG))
    train("best-alone", **watched(**BEST))
    for name, settings in VARIANTS.items():
        train(f"{name}-alone", **{**SHORT, **settings})
    trainer = evaluator("evaluated-alone", 5)
    note("evaluated-alone", metrics=[trainer.evaluate()])


# --- In two that share the weights ----------------------------------------------------------------------------------------


def long() -> None:
    train("long", shards=FULL, **watched(**LONG))


def best() -> None:
    """The checkpoints are of shards, so the best one is, too."""
    train("best", shards=SHARDED, **watched(**BEST))


def variant(name: str) -> None:
    train(name, shards=FULL, **{**SHORT, **VARIANTS[name]})


def uneven_with_whole_weights() -> None:
    """Resumed in the middle of its second epoch, before the batch that is filled up."""
    settings = {**UNEVEN, "save_steps": 1}
    train("uneven-whole", **settings)
    folder = copied("uneven-whole", "uneven-resumed")
    train("uneven-resumed", resume=str(folder / "checkpoint-3"), **settings)


def checkpointing(kind: str) -> None:
    """The forward passes of layers are repeated in the backward pass, by FSDP's own means or the model's."""
    own = {"activation_checkpointing": True} if kind == "fsdp" else FULL
    train(f"checkpointing-{kind}", shards=own, gradient_checkpointing=kind != "fsdp", regularizers={"centering": 0.1}, **SHORT)


def half_precision() -> None:
    """The weights stay in float32, and are computed with in bfloat16; peft's are trained in float32 beside those of a bfloat16 base."""
    train("bf16", shards=FULL, bf16=True, **SHORT)
    train("bf16-lora", shards=SHARDED, bf16=True, given=LORA, model_init_kwargs={"dtype": "bfloat16"}, **SHORT)


def loaded_in_one_process() -> None:
    """As with `cpu_ram_efficient_loading`: before weights are sharded, only the first process has them.

    The head of the language model is not trained and so not sharded: each process needs its own.
    """
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    # Not by ACCELERATE_USE_FSDP, with which accelerate asks for a GPU.
    enabled = mock.patch.object(transformers.modeling_utils, "is_fsdp_enabled", lambda: os.environ[name] == "true")
    settings = {**VARIANTS["grm"], "max_steps": 3, "shards": {**SHARDED, "cpu_ram_efficient_loading": True}}
    # A trainer that knows of FSDP from its beginning does not move the model.
    stays = mock.patch.object(transformers.trainer.Trainer, "_move_model_to_device", lambda *_: None)
    with mock.patch.dict(os.environ, {name: "true"}), enabled, stays:
        trainer = trainer_of(MODEL, folder_of("efficient"), **settings)
        assert any(weight.is_meta for weight in trainer.model.parameters()) != is_first()
        trainer.train()
        note("efficient", logged=logged(trainer))
        folder = copied("efficient", "efficient-resumed")
        train("efficient-resumed", resume=str(folder / "checkpoint-2"), **settings)


def checkpoints_of(kind: str) -> None:
    train(kind, shards=FULL if kind == "full" else SHARDED)
    train(f"{kind}-lora", shards=FULL if kind == "full" else SHARDED, given=LORA)


def resumed(kind: str) -> None:
    """A checkpoint that was not saved completely is skipped, with what is wrong with it."""
    for lora, given in (("", None), ("-lora", LORA)):
        folder = copied(f"{kind}{lora}", f"{kind}{lora}-resumed")
        if is_first():
            damaged(folder / "checkpoint-4", kind)
        distributed.barrier()
        with told() as messages:
            train(folder.name, resume=True, shards=FULL if kind == "full" else SHARDED, given=given)
        problem = (
            "optimizer.bin is truncated or damaged" if kind == "full" else "its shards are incomplete: optimizer_0/__1_0.distcp"
        )
        assert any("was not saved completely" in message and problem in message for message in messages) == is_first(), messages


def damaged(checkpoint: Path, kind: str) -> None:
    path = checkpoint / ("optimizer.bin" if kind == "full" else "optimizer_0/__1_0.distcp")
    path.write_bytes(path.read_bytes()[:-100])


def told() -> Any:
    """A context with the warnings that are logged in it."""
    return _Told()


class _Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger("rm_plugins_trl").addHandler(self)
        return self.messages

    def __exit__(self, *_: object) -> None:
        logging.getLogger("rm_plugins_trl").removeHandler(self)


def kinds_of_incomplete_shards() -> None:
    whole = folder_of("sharded/checkpoint-2")
    problems = {
        "pytorch_model_fsdp_0/.metadata": "pytorch_model_fsdp_0 has no .metadata, which is written last",
        "optimizer_0/__0_0.distcp": "optimizer_0/__0_0.distcp is missing",
        "optimizer_0": "those of the optimizer are missing",
        "rng_state_1.pth": "it has no rng_state_1.pth, which each of its 2 processes writes",
    }
    for number, (name, problem) in enumerate(problems.items()):
        broken = copied("sharded/checkpoint-2", f"broken/checkpoint-{number}")
        if is_first():
            path = broken / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        distributed.barrier()
        with pytest.raises(DataError, match=problem.replace(".", r"\.")):
            checkpoint_of_all(str(broken), broken.parent)
    assert checkpoint_of_all(str(whole), whole.parent) == whole


def refused() -> None:
    """Every process says why, before the training starts."""

    def check(error: type[Exception], message: str, checkpoint: str | None = None, **settings: Any) -> None:
        trainer = trainer_of(MODEL, folder_of("refused"), **settings)
        with pytest.raises(error, match=message):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(folder_of(checkpoint)))
        assert trainer.state.global_step == 0
        PartialState._shared_state["distributed_type"] = None

    check(DataError, "saved with fsdp_state_dict_type FULL_STATE_DICT", "full/checkpoint-2", shards=SHARDED)
    check(DataError, "saved with fsdp_state_dict_type SHARDED_STATE_DICT", "sharded/checkpoint-2", shards=FULL)
    check(DataError, "was saved without FSDP", "long-alone/checkpoint-10", regularizers={"centering": 0.1}, shards=FULL)
    check(SpecError, "save_on_each_node does not work", shards=FULL, save_on_each_node=True)
    mixed: dict[str, Any] = {"model_init_kwargs": {"dtype": "bfloat16"}, "given": LORA}
    check(SpecError, r"several dtypes \(bfloat16, float32\)", shards=FULL, **mixed)
    dropping = partial(check, SpecError, "does not keep the random state", shards={"activation_checkpointing": True})
    lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.1)
    dropping(given={"peft_config": lora}, disable_dropout=False)
    trainer = trainer_of(MODEL, folder_of("refused"), shards=FULL, given={"eval_dataset": Dataset.from_list(rows(2))})
    with pytest.raises(UnsupportedError, match=r"before trainer\.train"):
        trainer.evaluate()
    trainer = trainer_of(MODEL, folder_of("refused"))
    trainer.is_fsdp_enabled = False
    with pytest.raises(DataError, match="this training does not use FSDP"):
        trainer.train(resume_from_checkpoint=str(folder_of("full/checkpoint-2")))


def other_processes_see_no_checkpoint() -> None:
    own = folder_of("sharded") if is_first() else folder_of("elsewhere")
    with mock.patch.object(Path, "is_dir", lambda path: is_first()), pytest.raises(DataError, match="Process 1 does not see"):
        checkpoint_of_all(str(folder_of("sharded/checkpoint-2")), own)


# --- Killed ---------------------------------------------------------------------------------------------------------------


def killed(name: str, moment: str) -> None:
    """The first process dies while it saves the second checkpoint: after the shards of the model, or within the manifest."""
    calls: list[int] = []

    def die(*arguments: Any, original: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 and is_first():
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)

    places = {
        "shards": (transformers.trainer, "save_fsdp_optimizer"),
        "manifest": (Manifest, "write"),
    }
    owner, function = places[moment]
    original = getattr(owner, function)

    def replaced(*arguments: Any, **more: Any) -> Any:
        return die(*arguments, original=original, **more)

    with mock.patch.object(owner, function, replaced):
        train(name, shards=SHARDED if moment == "shards" else FULL)


def resumed_after_kill(name: str, moment: str) -> None:
    assert folder_of(f"{name}/checkpoint-4").is_dir() and not folder_of(f"{name}/checkpoint-4/trainer_state.json").exists()
    with told() as messages:
        train(name, resume=True, shards=SHARDED if moment == "shards" else FULL)
    assert any("checkpoint-4 was not saved completely" in message for message in messages) == is_first()


# --- Another number of processes ------------------------------------------------------------------------------------------


def in_one_process() -> None:
    """Shards of two processes are read by one, and the reverse."""
    meeting = folder_of("meeting-one")
    distributed.init_process_group("gloo", f"file://{meeting}", rank=0, world_size=1)
    folder = copied("sharded", "two-to-one")
    train("two-to-one", resume=str(folder / "checkpoint-2"), shards=SHARDED)
    for name, kind in (("one", SHARDED), ("one-full", FULL)):
        train(name, shards=kind, max_steps=2)


def in_two_processes() -> None:
    for name, kind in (("one", SHARDED), ("one-full", FULL)):
        folder = copied(name, f"{name}-to-two")
        with told() as messages:
            train(folder.name, resume=str(folder / "checkpoint-2"), shards=kind)
        assert any("world_size was 1 and is now 2" in message for message in messages)


# --- Evaluations with whole weights ---------------------------------------------------------------------------------------


def evaluator(name: str, rows_at_a_time: int, trl: bool | None = None) -> Any:
    from rm_plugins_trl import RewardTrainer

    RewardTrainer.uses_trl_batches = trl
    return trainer_of(
        MODEL,
        folder_of(name),
        per_device_train_batch_size=1,
        per_device_eval_batch_size=rows_at_a_time,
        regularizers={"centering": 0.1},
        given={"eval_dataset": Dataset.from_list(rows(5))},
    )


def evaluations(trl: bool | None) -> None:
    metrics = [evaluator("evaluated", size, trl).evaluate() for size in (1, 2, 8)]
    note(f"evaluated-{distributed.get_world_size()}-{bool(trl)}", metrics=metrics)


# --- All ------------------------------------------------------------------------------------------------------------------

GROUPS: Mapping[str, tuple[int, Mapping[str, Case]]] = {
    "alone": (1, {"alone": alone}),
    "two": (
        2,
        {
            "twenty steps": long,
            "the best model at the end": best,
            **{name: partial(variant, name) for name in VARIANTS},
            "FSDP's checkpointing": partial(checkpointing, "fsdp"),
            "the model's checkpointing": partial(checkpointing, "own"),
            "half precision": half_precision,
            "checkpoints of whole weights": partial(checkpoints_of, "full"),
            "checkpoints of shards": partial(checkpoints_of, "sharded"),
            "a damaged checkpoint of whole weights": partial(resumed, "full"),
            "a damaged checkpoint of shards": partial(resumed, "sharded"),
            "incomplete shards": kinds_of_incomplete_shards,
            "loaded in one process": loaded_in_one_process,
            "a checkpoint that one process does not see": other_processes_see_no_checkpoint,
            "what is refused": refused,
        },
    ),
    "killed in shards": (2, {"killed": partial(killed, "killed-in-shards", "shards")}),
    "killed in the manifest": (2, {"killed": partial(killed, "killed-in-manifest", "manifest")}),
    "after kills": (
        2,
        {
            "shards": partial(resumed_after_kill, "killed-in-shards", "shards"),
            "the manifest": partial(resumed_after_kill, "killed-in-manifest", "manifest"),
        },
    ),
    "one": (1, {"two to one": in_one_process}),
    "two again": (2, {"one to two": in_two_processes}),
    "whole weights in two": (
        2,
        {
            "an uneven last batch": uneven_with_whole_weights,
            "our batches": partial(evaluations, None),
            "TRL's batches": partial(evaluations, True),
        },
    ),
    "whole weights in three": (3, {"our batches": partial(evaluations, None), "TRL's batches": partial(evaluations, True)}),
}


def main() -> None:
    """Run all groups, or those named after the folder."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for group, (processes, cases) in GROUPS.items():
        if not sys.argv[3:] or group in sys.argv[3:]:
            run(cases, Path(FOLDER), processes, group)


if __name__ == "__main__":
    main()
