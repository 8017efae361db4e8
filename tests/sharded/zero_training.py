"""What each of several processes does: trainings under DeepSpeed's ZeRO, compared with those of one process without it."""

from __future__ import annotations

import faulthandler
import gc
import json
import multiprocessing
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from torch import distributed
from transformers import TrainerCallback

import rm_plugins as rm
from rm_plugins.errors import DataError, SpecError, TrainingError
from rm_plugins_trl import RewardConfig, RewardEvaluation, RewardTrainer, reward_func
from rm_plugins_trl.reward_training.base_model import size_and_kind
from tests.sharded.launcher import Cases, run
from tests.sharded.training import rows as uneven_rows

STEPS = 12
"""Of the longest training, in which small differences would add up."""
SAVED, KILLED = 4, 6
"""The step of its checkpoint, and that after which its processes are killed."""

LOGGED = ("loss", "grad_norm", "mean_reward", "margin")
SAMPLES = [rm.Sample("Name a colour.", text) for text in (" Blue.", " two", " It is blue, or perhaps a shade of green." * 3)]

model, untied, out = Path(), Path(), Path()  # set by `main`

TRAININGS: dict[str, dict[str, Any]] = {
    "long": {"max_steps": STEPS},
    "odin": {"loss": "odin"},
    "grm": {"loss": "grm"},
    "members": {"members": 2, "bootstrap": True},
    "lora": {"adapter": True},
    "merged": {"adapter": True, "merge_adapter": True},
}
"""Each trained alone, too. The model's embedding is its language-model head, too, which grm needs."""


def rows() -> list[dict[str, Any]]:
    """As many pairs as four whole steps have: the last batch of an epoch is otherwise filled up with rows of the first."""
    return [*uneven_rows(), *uneven_rows()[:2]]


def trainer_of(
    folder: Path,
    stage: int | None,
    *,
    adapter: bool = False,
    callbacks: Any = None,
    deepspeed_config: Any = None,
    base: Path | None = None,
    **more: Any,
) -> Any:
    """A trainer, four rows a step; with a stage, of ZeRO on all processes."""
    processes = distributed.get_world_size() if stage is not None else 1
    zero = {
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},  # small weights would stay whole
        **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"), "auto"),
        "gradient_accumulation_steps": "auto",
        **(deepspeed_config or {}),
    }
    settings: dict[str, Any] = {
        "max_steps": 4,
        "max_batch_tokens": 60,
        "per_device_train_batch_size": max(1, 2 // processes),
        "gradient_accumulation_steps": 4 // max(2, processes),
        "per_device_eval_batch_size": 4 // processes,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
        "save_steps": SAVED,
        "preset": "none",
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": stage is None,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "deepspeed": None if stage is None else zero,
        **more,
    }
    return RewardTrainer(
        str(base or model),
        RewardConfig(str(folder), **settings),
        train_dataset=Dataset.from_list(rows()),
        eval_dataset=Dataset.from_list(rows()),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if adapter else None,
        callbacks=[*(callbacks or ()), RewardEvaluation({"held": uneven_rows()[:7]}, resamples=5, every="end")],
    )


def logged(trainer: Any) -> dict[str, Any]:
    """What a training logged of each step, and what was evaluated at its end."""
    history = trainer.state.log_history
    held = {name: value for entry in history for name, value in entry.items() if name.startswith("eval_held/")}
    steps = [{name: entry[name] for name in LOGGED} for entry in history if "loss" in entry]
    return {"steps": steps, "held": held, "eval_loss": trainer.last_metrics["eval_loss"], "base": trainer.base_digest}


def alone() -> None:
    """The trainings of one process."""
    torch.set_num_threads(1)
    size = size_and_kind(str(untied), RewardConfig(str(out / "alone"), use_cpu=True))
    (out / "alone").mkdir()
    (out / "alone" / "size.json").write_text(json.dumps(size), encoding="utf-8")
    for name, settings in TRAININGS.items():
        trainer = trainer_of(out / "alone" / name, None, **settings)
        trainer.train()
        scores = rm.load(str(out / "alone" / name)).score(SAMPLES).values.tolist()
        (out / "alone" / f"{name}.json").write_text(json.dumps({**logged(trainer), "scores": scores}), encoding="utf-8")
    os._exit(0)


def expected(name: str) -> Any:
    return json.loads((out / "alone" / f"{name}.json").read_text(encoding="utf-8"))


def train(name: str, stage: int, **more: Any) -> Any:
    """Train, and compare the training with that of one process."""
    processes = distributed.get_world_size()
    trainer = trainer_of(out / f"{name}-{stage}-{processes}", stage, **TRAININGS[name], **more)
    trainer.train()
    assert_same(logged(trainer), expected(name))
    return trainer


def assert_same(found: Any, wanted: Any, begin: int = 0) -> None:
    """The losses and gradients from a step on are the same."""
    assert found["base"] == wanted["base"]
    assert len(found["steps"]) == len(wanted["steps"]) - begin
    for step, (one, other) in enumerate(zip(found["steps"], wanted["steps"][begin:], strict=True), begin + 1):
        assert one == pytest.approx(other, abs=1e-5, rel=1e-4), step
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5), step
    assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], abs=1e-5)
    assert {"eval_held/accuracy", "eval_held/margin"} <= wanted["held"].keys()
    assert found["held"] == pytest.approx(wanted["held"], abs=1e-4)


class LoadsRewards(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Loads a reward in the middle of a training, and scores with it."""

    def __init__(self) -> None:
        self.scores: list[list[float | None]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            for name in ("long", "lora"):
                folder = str(out / "alone" / name)
                self.scores.append(rm.load(folder).score(SAMPLES).values.tolist())
                prompts, completions = ([getattr(sample, part) for sample in SAMPLES] for part in ("prompt", "completion"))
                self.scores.append(reward_func(folder)(prompts=prompts, completions=completions))


class Kills(TrainerCallback):  # type: ignore[misc]  # likewise
    """Kills the process after a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)


# --- Cases -------------------------------------------------------------------------------------------------------------------


def whole_training() -> None:
    loads = LoadsRewards()
    train("long", 3, callbacks=[loads])
    assert loads.scores == [pytest.approx(expected(name)["scores"], abs=1e-5) for name in ("long", "long", "lora", "lora")]


def refused() -> None:
    from transformers import BitsAndBytesConfig

    for settings, message in (
        ({"merge_adapter": True, "adapter": True}, "merge_adapter"),
        ({"deepspeed_config": {"tensor_parallel": {"autotp_size": 2}}}, "tensor_parallel"),
        ({"deepspeed_config": {"pipeline": {"stages": 2}}}, "pipeline"),
        ({"model_init_kwargs": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}}, "quantized"),
    ):
        with pytest.raises(SpecError, match=message):
            trainer_of(out / "refused", 3, **settings)


def weights_that_are_not_finite() -> None:
    """Seen by all processes, though one alone has the weight."""
    trainer = trainer_of(out / "infinite", 3)
    weight = trainer.model.score.weight
    assert weight.shape == (0,)
    weight.ds_tensor[: 1 - distributed.get_rank()] = torch.inf
    with pytest.raises(TrainingError, match=r"score\.weight is not finite"):
        trainer.save(out / "infinite", checkpoint=False)


def an_untied_head() -> None:
    """It is loaded whole, beside a model that is partitioned."""
    trainer = trainer_of(out / "untied", 3, base=untied, loss="grm", max_steps=1, save_strategy="no")
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0
    parameters, is_encoder = json.loads((out / "alone" / "size.json").read_text(encoding="utf-8"))
    assert size_and_kind(str(untied), trainer.args) == (parameters, is_encoder)
    trained = parameters - trainer.model.config.hidden_size  # it has one output, and the configuration in the folder two
    assert size_and_kind(trainer.model, trainer.args) == (trained, is_encoder)
    assert trainer.state.total_flos > 0


def killed() -> None:
    trainer_of(out / "killed", 3, **TRAININGS["long"], callbacks=[Kills()]).train()


def resumed() -> None:
    folder = out / "killed"
    trainer = trainer_of(folder, 3, **TRAININGS["long"])
    trainer.train(resume_from_checkpoint=True)
    found = logged(trainer)
    assert_same({**found, "steps": found["steps"][SAVED:]}, expected("long"), begin=SAVED)
    if distributed.get_rank() == 0:
        uninterrupted, again = (load_file(path / "model.safetensors") for path in (out / "long-3-2", folder))
        for name, weight in uninterrupted.items():
            assert torch.equal(weight, again[name]), name


def resumed_from_stage_2() -> None:
    trainer = train("long", 2)
    folder = Path(trainer.args.output_dir)
    if distributed.get_rank() == 0:
        shutil.rmtree(folder / f"checkpoint-{STEPS}")
        shutil.rmtree(folder / f"checkpoint-{2 * SAVED}")
    distributed.barrier()
    again = trainer_of(folder, 2, **TRAININGS["long"])
    again.train(resume_from_checkpoint=True)
    assert logged(again)["steps"] == logged(trainer)["steps"]
    with pytest.raises(DataError, match="under stage 1 or 2 of ZeRO on 2 processes, and this training runs under stage 3 of"):
        trainer_of(folder, 3, **TRAININGS["long"]).train(resume_from_checkpoint=True)
    with pytest.raises(DataError, match="was saved without DeepSpeed, and this training runs under stage 1 or 2 of"):
        trainer_of(out / "alone" / "long", 2, **TRAININGS["long"]).train(resume_from_checkpoint=True)


def another_number_of_processes() -> None:
    with pytest.raises(
        DataError, match="stage 3 of ZeRO on 2 processes, and this training runs under stage 3 of ZeRO on 4 proc"
    ):
        trainer_of(out / "killed", 3, **TRAININGS["long"]).train(resume_from_checkpoint=True)


def in_processes(case: Callable[[], Any]) -> Callable[[], None]:
    """A case with what torchrun tells its processes."""

    def started() -> None:
        rank, processes = map(str, (distributed.get_rank(), distributed.get_world_size()))
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        case()

    return started


GROUPS: dict[str, tuple[int, Cases]] = {
    "two": (
        2,
        {
            "a whole training": in_processes(whole_training),
            "odin": in_processes(lambda: train("odin", 3)),
            "grm": in_processes(lambda: train("grm", 3)),
            "members": in_processes(lambda: train("members", 3)),
            "lora": in_processes(lambda: train("lora", 3)),
            "merged under stage 2": in_processes(lambda: train("merged", 2)),
            "an untied head": in_processes(an_untied_head),
            "resumed from stage 2": in_processes(resumed_from_stage_2),
            "weights that are not finite": in_processes(weights_that_are_not_finite),
            "refused": in_processes(refused),
        },
    ),
    "killed": (2, {"killed": in_processes(killed)}),
    "again": (2, {"resumed": in_processes(resumed)}),
    "four": (
        4,
        {
            "a whole training": in_processes(lambda: train("long", 3)),
            "another number of processes": in_processes(another_number_of_processes),
        },
    ),
}


def main() -> None:
    """Run all groups, or those named after the folders of the models and the output."""
    global model, untied, out
    model, untied, out, chosen = *map(Path, sys.argv[1:4]), sys.argv[4:]
    faulthandler.dump_traceback_later(1_500, exit=True)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, for DeepSpeed's calls
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    deepspeed: Any = import_module("deepspeed")  # before the processes are forked
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # which would be compiled
    backend = PartialState._prepare_backend

    def on_cpu(self: Any, cpu: bool = False, sagemaker: Any = False, given: str | None = None) -> Any:
        return backend(self, cpu, sagemaker, given or ("gloo" if "RANK" in os.environ else None))  # it knows none for DeepSpeed

    PartialState._prepare_backend = on_cpu
    gc.freeze()  # as in `run`
    if not (out / "alone").is_dir():
        plain = multiprocessing.get_context("fork").Process(target=alone)
        plain.start()
        plain.join()
    for name, (processes, cases) in GROUPS.items():
        if not chosen or name in chosen:
            (out / f"group-{name}").mkdir(exist_ok=True)
            run(cases, out / f"group-{name}", processes)


if __name__ == "__main__":
    main()
