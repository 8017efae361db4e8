"""The demonstration from beginning to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rm_plugins as rm
from rm_plugins.cli.printed import Console
from rm_plugins.data.row_files import write_rows
from rm_plugins.errors import ManifestError, ModelError
from rm_plugins.evaluation import PairMetrics, evaluate_pairs
from rm_plugins.files import write_atomically
from rm_plugins.models.model_folder import load_config
from rm_plugins_trl.demo.output_folder import check_free
from rm_plugins_trl.demo.policies import (
    NO_SETTING,
    load_policy,
    make_language_model,
    make_tokenizer,
    one_thread,
    sampled_completions,
)
from rm_plugins_trl.demo.preference_world import read_world
from rm_plugins_trl.demo.progress import Stages, quiet_libraries
from rm_plugins_trl.demo.report import Measure, draw_curves, summary
from rm_plugins_trl.demo.training import TINY, WHOLE, optimize_policy, start_policy, train_reward_model
from rm_plugins_trl.demo.world import Row, World, gold, make_world
from rm_plugins_trl.reward_function import reward_func

REWARD_NAME = "demo_reward"
"""The name of the trained reward in ``rm_plugins.yaml`` of the output folder."""
GOLD = "rm_plugins_trl.demo.world:gold_reward"
COMPLETION_TOKENS = 48
MEASURED_PROMPTS = 192
FOLDERS = ("data", "reward-model", "policy-before", "policy-after")
FILES = ("rm_plugins.yaml", "completions.jsonl", "curves.json", "curves.png", "summary.md")


def run_demo(
    output_dir: Path,
    *,
    overwrite: bool = False,
    steps: int = 150,
    seed: int = 0,
    dataset: str | None = None,
    pairs: int = 2_000,
    model: str | None = None,
    policy: str | None = None,
    world: World | None = None,
    console: Console | None = None,
) -> Path:
    """Train a reward model and a policy against it, measure both, and write a report.

    The arguments are the options of ``rm-plugins demo``; tests also pass a `world` and the console.

    Returns:
        The path of the summary.

    Raises:
        OutputError: The output folder cannot be written.
        DataError: The output folder is not empty, or a row of `dataset` is not a preference pair with a prompt.
        ModelError: `model` or `policy` cannot be loaded.
        ManifestError: The trained model does not give the scores that it gave in training.
    """
    console = console or Console()
    for source in filter(None, (model, policy)):
        if load_config(source, code_setting=NO_SETTING) is None:  # said now, not after the first training
            raise ModelError(f"{source} is not a model folder or hub id: it has no config.json.")
    _prepare(output_dir, overwrite)
    needs_tiny = model is None or policy is None
    stages = Stages(console, 4 + needs_tiny)
    threads = nullcontext() if model or policy else one_thread()
    with quiet_libraries(), threads, TemporaryDirectory() as scratch:
        with stages.stage("World", "preference pairs, prompts, and what is held out") as stage:
            if world is None:
                world = make_world(seed) if dataset is None else read_world(dataset, pairs=pairs, seed=seed)
            for name in ("pairs", "held_out_pairs", "demonstrations", "prompts", "held_out_prompts"):
                write_rows(getattr(world, name), output_dir / "data" / f"{name}.jsonl")
            stage.result = f"{len(world.pairs)} pairs, {len(world.held_out_pairs)} held out; {len(world.prompts)} prompts"

        tiny = Path(scratch) / "language-model" if policy is not None else output_dir / "policy-before"
        if needs_tiny:
            with stages.stage("Language model", "a tiny one learns to imitate the answers, good and bad", loss="loss") as stage:
                tokenizer = make_tokenizer(_texts(world.demonstrations))
                language_model = make_language_model(tokenizer, seed)
                start_policy(language_model, tokenizer, world.demonstrations, stage, seed)
                _save_model(language_model, tokenizer, tiny)
                stage.result = f"{language_model.num_parameters():,} parameters"

        reward_folder = output_dir / "reward-model"
        with stages.stage("Reward model", "is trained on the noisy pairs", accuracy="accuracy", loss="loss") as stage:
            recipe = TINY if model is None else WHOLE
            train_reward_model(model or str(tiny), world.pairs, world.held_out_pairs, reward_folder, recipe, stage, seed)
            names = {REWARD_NAME: "./reward-model", **({"gold": GOLD} if world.has_gold else {})}
            write_atomically(output_dir / "rm_plugins.yaml", yaml.safe_dump(names, sort_keys=False))
            rewards = rm.load(reward_folder)
            if problems := rewards.verify():  # type: ignore[attr-defined]  # it is a SequenceClassifier
                raise ManifestError(
                    f"The trained reward does not give the scores that it gave in training: {'; '.join(problems)}."
                )
            held_out = evaluate_pairs(rewards, world.held_out_pairs)
            stage.result = f"held out: {held_out}; verified, and registered as {REWARD_NAME}"

        learner, tokenizer = load_policy(policy or str(tiny))
        before = _measured(learner, tokenizer, world, rewards, seed)
        metrics = {"learned": "rewards/learned/mean", "gold": "rewards/gold/mean"}
        with stages.stage("GRPO", "the policy is trained against the learned reward", **metrics) as stage:
            functions = [reward_func(rewards, name="learned")]
            if world.has_gold:
                functions.append(reward_func(GOLD, name="gold"))  # measured, with weight 0
            curves = optimize_policy(
                learner,
                tokenizer,
                world.prompts,
                functions,
                steps=steps,
                completion_tokens=COMPLETION_TOKENS,
                recipe=TINY if policy is None else WHOLE,
                stage=stage,
                seed=seed,
            )
            _save_model(learner, tokenizer, output_dir / "policy-after")
            stage.result = f"{steps} steps"

        with stages.stage("Report", "the policy before and after GRPO, on held-out prompts") as stage:
            after = _measured(learner, tokenizer, world, rewards, seed)
            path = _report(output_dir, world, curves, before, after, held_out, stages.seconds)
            stage.result = f"written to {output_dir}"
    console.print()
    console.print(path.read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    return path


def _prepare(folder: Path, overwrite: bool) -> None:
    check_free(folder, overwrite)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def _texts(rows: Sequence[Row]) -> list[str]:
    """What a tokenizer for these rows must know."""
    parts = [part for row in rows for part in (row["prompt"], row["completion"])]
    return [part if isinstance(part, str) else "\n".join(turn["content"] for turn in part) for part in parts]


def _save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, world: World, rewards: rm.Provider, seed: int
) -> Measure:
    """What a policy writes for held-out prompts, and its rewards."""
    prompts = world.held_out_prompts[:MEASURED_PROMPTS]
    texts = sampled_completions(model, tokenizer, prompts, COMPLETION_TOKENS, seed)
    learned = rewards.score([rm.Sample(row["prompt"], text) for row, text in zip(prompts, texts, strict=True)]).values
    true = [gold(row["prompt"], text) for row, text in zip(prompts, texts, strict=True)] if world.has_gold else None
    return Measure(texts, learned, None if true is None else np.array(true, dtype=float))


def _report(
    folder: Path,
    world: World,
    curves: Sequence[Mapping[str, float]],
    before: Measure,
    after: Measure,
    held_out: PairMetrics,
    seconds: Mapping[str, float],
) -> Path:
    prompts = [row["prompt"] for row in world.held_out_prompts]
    pairs = zip(prompts, before.completions, after.completions, strict=False)
    rows = ({"prompt": prompt, "completions": completions} for prompt, *completions in pairs)
    write_rows(rows, folder / "completions.jsonl")  # for `rm-plugins rank` and `score`
    figures = {
        "before": before.figures(),
        "after": after.figures(),
        "held_out_pairs": asdict(held_out),
        "seconds": dict(seconds),
        "steps": list(curves),
    }
    write_atomically(folder / "curves.json", json.dumps(figures, indent=2) + "\n")
    draw_curves(curves, before, after, folder / "curves.png")
    return write_atomically(folder / "summary.md", summary(folder, REWARD_NAME, prompts, before, after, held_out))
