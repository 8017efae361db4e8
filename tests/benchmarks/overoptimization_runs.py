"""What is measured of over-optimization, and how: one reward against several, in a world whose true reward is known."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers import AutoModelForSequenceClassification, set_seed

import rm_plugins as rm
from rm_plugins.data.row_files import read_rows, write_rows
from rm_plugins.evaluation import evaluate_pairs
from rm_plugins.models.merge import merge_models
from rm_plugins.scores import FloatArray
from rm_plugins.spec import component
from rm_plugins_trl.demo.policies import load_policy, make_language_model, make_tokenizer, sampled_completions
from rm_plugins_trl.demo.progress import Stage, quiet_libraries
from rm_plugins_trl.demo.training import TINY, optimize_policy, start_policy, train_reward_model
from rm_plugins_trl.demo.world import World, gold, make_world
from rm_plugins_trl.reward_function import reward_func

__all__ = [
    "COMPLETION_TOKENS",
    "FLIP_RATE",
    "GOLD",
    "MEMBERS",
    "PROXIES",
    "SINGLE",
    "Sizes",
    "best_of_n",
    "make_models",
    "make_seed",
    "proxy_spec",
    "quiet_stage",
    "train_policy",
]

MEMBERS = 5
FLIP_RATE = 0.25
"""The share of labels that are turned around, beside those that the better answer loses by chance."""
GOLD = "rm_plugins_trl.demo.world:gold_reward"
COMPLETION_TOKENS = 48
KL_WEIGHT = 0.001
"""GRPO's beta: enough for the divergence to be measured, too little to hold the policy."""

SINGLE, WARM = "one model", "WARM"
AGGREGATES: Mapping[str, Any] = {
    "mean": "mean",
    "min": "min",
    "lcb, k = 1": {"name": "lcb", "k": 1.0},
    "uwo, coefficient = 0.5": {"name": "uwo", "coefficient": 0.5},
}
PROXIES = (SINGLE, *AGGREGATES, WARM)
"""The rewards that are compared; every ensemble has the same members, each as a z-score."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is computed.

    Args:
        pairs: Pairs that each member is trained on.
        prompts: Held-out prompts that are completed for best-of-n.
        completions: Completions of each.
        steps: Steps of GRPO.
    """

    pairs: int = 8_000
    prompts: int = 64
    completions: int = 512
    steps: int = 400


def proxy_spec(name: str, folder: Path) -> dict[str, Any]:
    """The spec of a reward that is compared, over the models in a seed's folder."""
    if name == WARM:
        return {"provider": "sequence-classifier", "model": str(folder / "warm")}
    members = [
        {"provider": "sequence-classifier", "model": str(folder / f"member-{number}"), "transform": "zscore"}
        for number in range(MEMBERS)
    ]
    return members[0] if name == SINGLE else {"provider": "ensemble", "aggregate": AGGREGATES[name], "members": members}


def make_seed(folder: Path, seed: int, sizes: Sizes) -> dict[str, Any]:
    """Make the world of a seed, a policy that answers as its demonstrations do, the members, and their average.

    The members are trained on the same pairs in orders of their own, from one start whose head is common to them, which
    averaging weights needs.

    Returns:
        The accuracy of each on held-out pairs with true labels.
    """
    with quiet_libraries():
        make_models(folder, seed, sizes.pairs, MEMBERS)
        if not (folder / "warm").exists():
            merge_models([str(folder / f"member-{number}") for number in range(MEMBERS)], folder / "warm")
        rows = _true_pairs(seed)
        return {
            "members": [evaluate_pairs(rm.load(folder / f"member-{number}"), rows).accuracy for number in range(MEMBERS)],
            **{name: evaluate_pairs(rm.load(proxy_spec(name, folder)), rows).accuracy for name in PROXIES},
        }


def make_models(folder: Path, seed: int, pairs: int, members: int) -> None:
    """Make what a folder lacks of a seed's policy and its first members, each trained on `pairs` pairs."""
    world = make_world(seed, pairs=pairs, flip_rate=FLIP_RATE)
    policy, start = folder / "policy", folder / "start"
    if not policy.exists():
        tokenizer = make_tokenizer([row["prompt"] + row["completion"] for row in world.demonstrations])
        model = make_language_model(tokenizer, seed)
        start_policy(model, tokenizer, world.demonstrations, quiet_stage(), seed)
        for name in (policy, start):
            tokenizer.save_pretrained(name)
        model.save_pretrained(policy)
        set_seed(seed)
        AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1).save_pretrained(start)
    for number in range(members):
        member = folder / f"member-{number}"
        if not (member / "reward_manifest.json").exists():
            shutil.rmtree(member, ignore_errors=True)
            train_reward_model(
                str(start), world.pairs, world.held_out_pairs, member, TINY, quiet_stage(), seed * MEMBERS + number + 1
            )


def _true_pairs(seed: int) -> list[dict[str, Any]]:
    """Held-out pairs with the truly better answer chosen; those of equal answers are left out."""
    rows = []
    for row in make_world(seed, pairs=0, demonstrations=0, held_out_pairs=1_000).held_out_pairs:
        first, second = ((gold(row["prompt"], row[side]), row[side]) for side in ("chosen", "rejected"))
        if first[0] != second[0]:
            better, worse = sorted((first, second), key=lambda found: found[0] or 0.0, reverse=True)
            rows.append({"prompt": row["prompt"], "chosen": better[1], "rejected": worse[1]})
    return rows


def best_of_n(folder: Path, seed: int, sizes: Sizes) -> dict[str, dict[str, list[float]]]:
    """The expected gold reward and proxy of the best of n completions by each proxy, for n = 1, 2, 4 up to half of them.

    Returns:
        By proxy: ``n``, ``gold`` and ``kl``, the bound log n - (n - 1) / n of the divergence from the policy.
    """
    samples = _samples(folder, seed, sizes)
    true = np.array([gold(str(sample.prompt), str(sample.completion)) for sample in samples]).reshape(sizes.prompts, -1)
    members = np.stack(
        [
            _scores(proxy_spec(SINGLE, folder) | {"model": str(folder / f"member-{number}")}, samples)
            for number in range(MEMBERS)
        ]
    )
    found = {}
    counts = [2**power for power in range(int(np.log2(sizes.completions // 2)) + 1)]
    for name in PROXIES:
        if name == SINGLE:
            proxies = members
        elif name == WARM:
            proxies = _scores(proxy_spec(name, folder), samples)[None]
        else:
            proxies = component("aggregate", AGGREGATES[name])(members)[None]
        # One model is each of the members in turn, for the noise of one of them not to decide.
        curves = [_expected_best(proxy.reshape(sizes.prompts, -1), true, counts) for proxy in proxies]
        found[name] = {
            "n": counts,
            "kl": [float(np.log(n) - (n - 1) / n) for n in counts],
            "gold": np.mean(curves, axis=0).tolist(),
        }
    return found


def _samples(folder: Path, seed: int, sizes: Sizes) -> list[rm.Sample]:
    """Completions of held-out prompts by the policy, those of a prompt together; kept in a file."""
    path = folder / "completions.parquet"
    if not path.exists():
        prompts = make_world(seed, pairs=0, demonstrations=0).held_out_prompts[: sizes.prompts]
        model, tokenizer = load_policy(str(folder / "policy"))
        repeated = [row for row in prompts for _ in range(sizes.completions)]
        texts = sampled_completions(model, tokenizer, repeated, COMPLETION_TOKENS, seed, batch_size=sizes.completions)
        write_rows(({"prompt": row["prompt"], "completion": text} for row, text in zip(repeated, texts, strict=True)), path)
    return [rm.Sample(row["prompt"], row["completion"]) for row in read_rows(str(path))]


def _scores(spec: Mapping[str, Any], samples: list[rm.Sample]) -> FloatArray:
    provider = rm.load(spec)
    return np.concatenate([provider.score(samples[at : at + 4_096]).values for at in range(0, len(samples), 4_096)])


def _expected_best(proxy: FloatArray, true: FloatArray, counts: list[int]) -> FloatArray:
    """The mean over prompts of the expected true reward of the best of n, without bias from N >= n completions of each.

    Args:
        proxy: [prompts, N].
        true: [prompts, N].
        counts: The values of n.
    """
    size = proxy.shape[1]
    ordered = np.take_along_axis(true, np.argsort(proxy, axis=1, kind="stable"), axis=1)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size + 1)))])  # log k!

    def chosen(n: int) -> FloatArray:
        """The probability that the i-th of N in ascending order is the best of n: C(i - 1, n - 1) / C(N, n)."""
        i = np.arange(n, size + 1)
        log = logs[i - 1] - logs[n - 1] - logs[i - n] - (logs[size] - logs[n] - logs[size - n])
        return np.concatenate([np.zeros(n - 1), np.exp(log)])

    return np.array([(ordered @ chosen(n)).mean() for n in counts])


def train_policy(folder: Path, seed: int, name: str, sizes: Sizes) -> dict[str, list[float]]:
    """Train the seed's policy with GRPO against a proxy.

    Returns:
        By step: ``gold`` and ``proxy``, the means over its completions, and ``kl``, the measured divergence.
    """
    world: World = make_world(seed, pairs=0, held_out_pairs=0, demonstrations=0)
    model, tokenizer = load_policy(str(folder / "policy"))
    with quiet_libraries():
        curves = optimize_policy(
            model,
            tokenizer,
            world.prompts,
            [reward_func(proxy_spec(name, folder), name="proxy"), reward_func(GOLD, name="gold")],
            steps=sizes.steps,
            completion_tokens=COMPLETION_TOKENS,
            recipe=TINY,
            stage=quiet_stage(),
            seed=seed,
            kl_weight=KL_WEIGHT,
        )
    return {key: [round(step[key], 6) for step in curves] for key in ("gold", "proxy", "kl")}


def quiet_stage() -> Stage:
    """A stage that shows nothing."""
    return Stage(Console(quiet=True).status(""), {})
