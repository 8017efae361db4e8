"""Each undocumented name of TRL and transformers that the integration relies on: which one broke, where one did."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler
from trl import GRPOTrainer, RewardTrainer
from trl.trainer.utils import RepeatSampler

import rm_plugins_trl
from rm_plugins_trl import trl_internals
from tests.trl.conftest import newest_trl

FOLDER = Path(rm_plugins_trl.__file__).parent


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def trainer_attributes() -> set[str]:
    """What `Trainer.__init__` and what it calls set."""
    tree = ast.parse(inspect.getsource(inspect.getmodule(Trainer)))  # type: ignore[arg-type]
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def tree_of(function: Callable[..., Any]) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


def returned(function: Callable[..., Any]) -> list[list[str]]:
    """What each ``return`` of a function names, one list of expressions for each; those of functions in it do not count."""
    found: list[list[str]] = []
    nodes: list[ast.AST] = [*tree_of(function).body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Return) and node.value is not None:
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            found.append([ast.unparse(value) for value in values])
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes.extend(ast.iter_child_nodes(node))
    return found


def calls(function: Callable[..., Any], method: str) -> list[tuple[list[str], list[str]]]:
    """The calls of ``self.METHOD`` whose result a function takes apart: what it is taken apart into, and the arguments' names."""
    return [
        (
            [ast.unparse(name) for name in node.targets[0].elts],
            [*map(ast.unparse, node.value.args), *(str(keyword.arg) for keyword in node.value.keywords)],
        )
        for node in ast.walk(tree_of(function))
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Call)
        if ast.unparse(node.value.func) == f"self.{method}"
    ]


def stored_by_grpo(text: str) -> bool:
    """Whether a line of GRPO's trainer has the text."""
    return text in inspect.getsource(GRPOTrainer)


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
    "transformers.Trainer._save": lambda: parameters(Trainer._save) == ["self", "output_dir", "state_dict"],
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

"""By the names of TRL 1.12.0 and 1.16.0, and of transformers 4.57.6 and 5.23.0."""

PPO_CHECKS: dict[str, Callable[[], bool]] = {
    "trl.GRPOTrainer._tokenize_prompts": lambda: (
        parameters(GRPOTrainer._tokenize_prompts) == ["self", "prompts"]
        and all(names == ["prompt_ids", "images", "multimodal_fields"] for names in returned(GRPOTrainer._tokenize_prompts))
    ),
    "trl.GRPOTrainer._generate": lambda: (
        parameters(GRPOTrainer._generate) == ["self", "prompts"]
        and [names[:3] for names in returned(GRPOTrainer._generate)] == [["prompt_ids", "completion_ids", "tool_mask"]]
    ),
    "trl.GRPOTrainer._get_per_token_logps_and_entropies": lambda: (
        (found := calls(GRPOTrainer._generate_and_score_completions, "_get_per_token_logps_and_entropies")) != []
        and all(len(into) == 3 and arguments[3] == "logits_to_keep" for into, arguments in found)
    ),
    "trl.GRPOTrainer._calculate_rewards": lambda: (
        parameters(GRPOTrainer._calculate_rewards)[:2] == ["self", "inputs"]
        and returned(GRPOTrainer._calculate_rewards) == [["rewards_per_func"]]
    ),
    "trl.GRPOTrainer._generate_and_score_completions": lambda: (
        parameters(GRPOTrainer._generate_and_score_completions) == ["self", "inputs"]
        and returned(GRPOTrainer._generate_and_score_completions) == [["output"]]
        and stored_by_grpo('output["importance_sampling_ratio"] = ')
    ),
    "trl.GRPOTrainer._prepare_inputs": lambda: parameters(GRPOTrainer._prepare_inputs) == ["self", "generation_batch"],
    "trl.GRPOTrainer._get_train_sampler": lambda: (
        parameters(GRPOTrainer._get_train_sampler) == ["self", "dataset"]
        and [names[0].partition("(")[0] for names in returned(GRPOTrainer._get_train_sampler)] == ["RepeatSampler"]
    ),
    "trl.trainer.utils.RepeatSampler.generator": lambda: (
        (sampler := RepeatSampler([0, 1], 1, seed=3)).seed == 3 and hasattr(sampler, "generator")
    ),
    "trl.GRPOTrainer._metrics": lambda: stored_by_grpo(
        'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}'
    ),
    "trl.GRPOTrainer: the names in a model card": lambda: {"_name", "_tag_names", "_paper"} <= {*vars(GRPOTrainer)},
    "trl.GRPOTrainer._logs": lambda: stored_by_grpo('self._logs["advantages"].extend('),
    "trl.trainer.callbacks.SyncRefModelCallback": lambda: (
        parameters(trl_internals.SyncRefModelCallback.__init__) == ["self", "ref_model", "accelerator"]
    ),
    "transformers.Trainer._load_from_checkpoint": lambda: (
        parameters(GRPOTrainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    ),
    "transformers.Trainer._load_best_model": lambda: parameters(GRPOTrainer._load_best_model) == ["self"],
    "transformers.Trainer.save_model(_internal_call)": lambda: (
        parameters(GRPOTrainer.save_model) == ["self", "output_dir", "_internal_call"]
    ),
}
"""What `rm_plugins_trl.ppo.open_grpo` relies on, in TRL 1.13.0, 1.14.0, 1.15.0 and 1.16.0."""


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


@newest_trl
def test_none_of_ppo_is_broken() -> None:
    assert broken(PPO_CHECKS) == [], "TRL or transformers has changed what rm_plugins_trl.ppo.open_grpo relies on"


@newest_trl
def test_every_private_name_of_ppo_is_checked() -> None:
    tree = ast.parse((FOLDER / "ppo" / "open_grpo.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr)]
    inherited = {node.attr for node in found if ast.unparse(node.value) == "super()"}
    used = {node.attr for node in found} - (names_made_in(tree) - inherited)
    assert used == {name.rpartition(".")[2] for name in PPO_CHECKS if re.search(r"Trainer\._[a-z_]+$", name)}


@newest_trl
def test_the_one_of_ppo_that_broke_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(GRPOTrainer):  # type: ignore[misc]
        def _generate(self, prompts: Any) -> Any:
            completion_ids, prompt_ids, tool_mask = super()._generate(prompts)
            return completion_ids, prompt_ids, tool_mask

        def _prepare_inputs(self, batch: Any) -> Any:
            return batch

    monkeypatch.setitem(globals(), "GRPOTrainer", Changed)
    assert {"trl.GRPOTrainer._generate", "trl.GRPOTrainer._prepare_inputs"} <= {*broken(PPO_CHECKS)}
    monkeypatch.setitem(globals(), "GRPOTrainer", object)
    assert {name for name in PPO_CHECKS if "GRPOTrainer" in name} <= {*broken(PPO_CHECKS)}


def test_the_one_that_broke_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RewardTrainer, "_prepare_dataset")
    monkeypatch.setattr(trl_internals, "create_model_from_path", lambda source: source)
    assert broken(CHECKS) == ["trl.RewardTrainer._prepare_dataset", "trl.trainer.utils.create_model_from_path"]


def names_made_in(tree: ast.Module) -> set[str]:
    """The functions, classes, variables and attributes that a file makes."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return own | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}


def private_names(path: Path) -> Iterator[str]:
    """What a file takes of TRL and transformers that is private: submodules of TRL, and names with an underscore."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = names_made_in(tree)
    if path.name in ("trainer.py", "rollout_trainer.py"):  # one class in two files
        own |= names_made_in(ast.parse((FOLDER / "ppo" / "rollout_trainer.py").read_text(encoding="utf-8")))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in ("trl", "transformers"):
            submodule = node.module.startswith("trl.") and not node.module.startswith("trl.experimental.")
            yield from (f"{node.module}.{name.name}" for name in node.names if submodule or name.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr) and node.attr not in own:
            yield node.attr


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_other_file_names_one(path: Path) -> None:
    expected = {
        "open_grpo.py": {"_logs", "_metrics"},  # and what it overrides
        "trl_internals.py": {
            "trl.cli.accelerate_config.resolve_accelerate_config_argument",
            "trl.trainer.callbacks.SyncRefModelCallback",
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
