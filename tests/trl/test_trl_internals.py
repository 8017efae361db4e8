"""Each undocumented name of TRL and transformers that the integration relies on: which one broke, where one did."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from trl import RewardTrainer

import rm_plugins_trl
from rm_plugins_trl import trl_internals

FOLDER = Path(rm_plugins_trl.__file__).parent


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def trainer_attributes() -> set[str]:
    """What `Trainer.__init__` and what it calls set."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(Trainer)))  # type: ignore[arg-type]
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


CHECKS: dict[str, Callable[[], bool]] = {
    "trl.RewardTrainer._prepare_dataset": lambda: (
        parameters(RewardTrainer._prepare_dataset) == ["self", "dataset", "processing_class", "args", "dataset_name"]
    ),
    "transformers.Trainer.save_model(_internal_call)": lambda: (
        parameters(RewardTrainer.save_model) == ["self", "output_dir", "_internal_call"]
    ),
    "transformers.Trainer.get_batch_samples": lambda: (
        parameters(RewardTrainer.get_batch_samples) == ["self", "epoch_iterator", "num_batches", "device"]
    ),
    "transformers.Trainer.current_gradient_accumulation_steps": lambda: (
        "current_gradient_accumulation_steps" in trainer_attributes()
    ),
    "transformers.Trainer.is_fsdp_enabled": lambda: "is_fsdp_enabled" in trainer_attributes(),
    "transformers.Trainer.is_deepspeed_enabled": lambda: "is_deepspeed_enabled" in trainer_attributes(),
    "transformers.Trainer.callback_handler": lambda: "callback_handler" in trainer_attributes(),
    "transformers.TrainerState.stateful_callbacks": lambda: TrainerState().stateful_callbacks == {},
    "trl.trainer.reward_trainer.suppress_seqcls_warning": lambda: (
        trl_internals.suppress_seqcls_warning.__module__ == "trl.trainer.reward_trainer"
    ),
    "trl.trainer.utils.create_model_from_path": lambda: (
        parameters(trl_internals.create_model_from_path)[:2] == ["model_id", "architecture"]
    ),
    "trl.cli.accelerate_config.resolve_accelerate_config_argument": lambda: (
        trl_internals.resolve_accelerate_config_argument(["--accelerate_config", "fsdp2"])[0] == "--config_file"
    ),
}


def broken(checks: dict[str, Callable[[], bool]]) -> list[str]:
    """The names whose check fails, or cannot be made."""

    def holds(check: Callable[[], bool]) -> bool:
        try:
            return check()
        except (AttributeError, TypeError):
            return False

    return [name for name, check in checks.items() if not holds(check)]


def test_none_is_broken() -> None:
    assert broken(CHECKS) == [], "TRL or transformers has changed what rm_plugins_trl.trl_internals relies on"


def test_the_one_that_broke_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RewardTrainer, "_prepare_dataset")
    monkeypatch.setattr(trl_internals, "create_model_from_path", lambda source: source)
    assert broken(CHECKS) == ["trl.RewardTrainer._prepare_dataset", "trl.trainer.utils.create_model_from_path"]


def private_names(path: Path) -> Iterator[str]:
    """What a file takes of TRL and transformers that is private: submodules of TRL, and names with an underscore."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ("trl", "transformers"):
            submodule = node.module.startswith("trl.") and not node.module.startswith("trl.experimental.")
            yield from (f"{node.module}.{name.name}" for name in node.names if submodule or name.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr) and node.attr not in own:
            yield node.attr


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_other_file_names_one(path: Path) -> None:
    expected = {
        "trl_internals.py": {
            "trl.cli.accelerate_config.resolve_accelerate_config_argument",
            "trl.trainer.reward_trainer.suppress_seqcls_warning",
            "trl.trainer.utils.create_model_from_path",
        },
        "launching.py": {"_actions"},  # of Python's argparse, as in the next one
        "trl_command.py": {"_actions"},
    }
    assert set(private_names(path)) == expected.get(path.name, set())


def test_a_private_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "glue.py"
    path.write_text(
        "from trl.data_utils import x\nfrom trl import y\ndef f(trainer):\n    return trainer._metrics, trainer.state\n"
    )
    assert list(private_names(path)) == ["trl.data_utils.x", "_metrics"]


def test_callbacks_are_placed_first() -> None:
    first, second, third = (TrainerCallback() for _ in range(3))
    handler = CallbackHandler([first, second, third], None, None, None, None)
    trainer = SimpleNamespace(callback_handler=handler)
    trl_internals.place_first(trainer, [third])
    assert [callback is one for callback, one in zip(handler.callbacks, (third, first, second), strict=True)] == [True] * 3


def test_weights_of_one_process_are_not_sharded(tmp_path: Path) -> None:
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert not trl_internals.is_sharded(Trainer(model=__import__("torch").nn.Linear(1, 1), args=arguments))
