"""Evaluations for the tests of what is made of them: simulated rewards, one of which knows length alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rm_plugins.evaluation.finding import Finding
from rm_plugins.evaluation.results import (
    DataSummary,
    Difference,
    Distribution,
    Evaluation,
    FlippedPair,
    JudgedPair,
    LengthBin,
    LengthScatter,
    Members,
    RewardResult,
    SectionResult,
)
from rm_plugins.statistics.best_of_n import BestOfN
from rm_plugins.statistics.bias import FeatureBias
from rm_plugins.statistics.intervals import Estimate
from rm_plugins.statistics.metrics import CalibrationBin
from rm_plugins.suites import SuiteResult, SuiteSection, SuiteTable

__all__ = ["SECTIONS", "evaluation_of"]

SECTIONS = ("chat", "chat-hard", "reasoning-code", "reasoning-math", "safety-refuse", "safety-respond")
Values = NDArray[np.float64]

_PAIRS = 1_200
_PROMPT = "A farmer has 17 sheep, and all but 9 run away. How many sheep are left? Explain how you know."
_SHORT = "9 sheep are left: “all but 9” means that 9 stayed."
_LONG = (
    "Great question! Let us go through it step by step.\n\n- The farmer has 17 sheep.\n- 9 of them run away.\n- 17 - 9 = 8.\n\n"
    * 3
)


def evaluation_of(
    names: Sequence[str] = ("chars", "helpful-7b", "ensemble-of-3"),
    *,
    sections: Sequence[str] = SECTIONS,
    suite: str = "RewardBench",
    seed: int = 0,
) -> Evaluation:
    """An evaluation of rewards: the one called ``chars`` is the length itself, each further one is a bit better than the one before.

    A reward whose name begins with ``ensemble`` has three members.
    """
    rng = np.random.default_rng(seed)
    section = rng.integers(max(1, len(sections)), size=_PAIRS)
    longer = np.round(rng.normal(130, 420, _PAIRS))
    lengths = np.round(rng.lognormal(6.2, 0.6, _PAIRS))
    deltas, rewards = {}, []
    for place, name in enumerate(names):
        skill = rng.normal(0.5 + 0.1 * place - 0.05 * section, 1.0)
        deltas[name] = longer / 300 if name == "chars" else skill + longer / 2_000
    for name, delta in deltas.items():
        rewards.append(_reward(name, delta, longer, lengths, section, sections, suite, rng))
    first = names[0]
    differences = tuple(_difference(first, name, deltas[first], deltas[name], section, sections) for name in names[1:])
    return Evaluation(
        created="2026-03-14T15:09:26Z",
        versions={"rm-plugins": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        settings={"resamples": 2_000, "seed": 0, "cluster": "prompt", "confidence": 0.95, "calibration_bins": 20},
        data=DataSummary(
            source="data/preferences.jsonl.gz",
            split="test",
            suite=suite,
            digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            rows=_PAIRS,
            samples=2 * _PAIRS,
            pairs=_PAIRS,
            prompts=1_043,
            formats={"preference": _PAIRS},
            sections={name: int((section == number).sum()) for number, name in enumerate(sections)},
            attributes=(),
            longer_chosen=float((longer > 0).mean()),
            length_chosen=612.4,
            length_rejected=487.9,
        ),
        rewards=tuple(rewards),
        differences=differences,
    )


def _reward(
    name: str,
    delta: Values,
    longer: Values,
    lengths: Values,
    section: NDArray[np.int64],
    sections: Sequence[str],
    suite: str,
    rng: np.random.Generator,
) -> RewardResult:
    right = delta > 0
    p = 1 / (1 + np.exp(-delta))
    chosen = rng.normal(0.4, 1.0, len(delta)) + delta / 2
    rejected = chosen - delta
    is_length, is_ensemble = name == "chars", name.startswith("ensemble")
    reward = lengths / 300 if is_length else rng.normal(0.0, 1.0, len(delta)) + np.log(lengths) * 0.4
    longer_is_right, shorter_is_right = right[longer > 0], right[longer < 0]
    figures = {
        "accuracy": _share(right),
        "ties": Estimate(0.0, 0.0, 0.0),
        "accuracy_longer": _share(longer_is_right),
        "accuracy_shorter": _share(shorter_is_right),
        "accuracy_corrected": Estimate(0.503, 0.474, 0.531) if is_length else _share(right[: len(right) // 2]),
        "length_preference": _share((delta > 0) == (longer > 0)),
        "shortness_preference": _share((delta > 0) == (longer < 0)),
        "length_correlation": _mean((reward - reward.mean()) / reward.std() * (lengths - lengths.mean()) / lengths.std()),
        "margin": _mean(delta),
        "log_loss": _mean(-np.log(p)),
        "ece": Estimate(0.2213 if is_length else 0.0312, math.nan, math.nan),
        "brier": _mean((1 - p) ** 2),
        "auc": Estimate(0.5812 + 0.1 * (not is_length), math.nan, math.nan),
        "mean_reward": Estimate(float(reward.mean()), math.nan, math.nan),
        "std_reward": Estimate(float(reward.std()), math.nan, math.nan),
    }
    members = None
    if is_ensemble:
        agreement = ((1.0, 0.842, 0.811), (0.842, 1.0, 0.867), (0.811, 0.867, 1.0))
        members = Members(("member/0", "member/1", "member/2"), (0.661, 0.684, 0.672), agreement, 0.7612, 0.7733, 0.5214)
        figures["member_agreement"] = Estimate(0.7612, 0.7361, 0.7853)
    edges = np.quantile(longer, np.linspace(0, 1, 9)).round()
    bins = []
    for low, high in pairwise(edges.tolist()):
        inside = (longer >= low) & (longer <= high)
        bins.append(LengthBin(float(low), float(high), int(inside.sum()), _share(right[inside])))
    hist = np.histogram_bin_edges(np.concatenate([chosen, rejected]), 40)
    order = np.sort(lengths)[:: len(lengths) // 60]
    return RewardResult(
        name=name,
        source=f"./models/{name}",
        spec={"provider": "sequence-classifier", "model": f"./models/{name}", "max_length": 2048},
        fingerprint="2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
        rendering="" if is_length else "<|user|>\nHow many sheep are left?<|end|>\n<|assistant|>\n9 sheep are left.<|end|>",
        manifest={}
        if is_length
        else {"": {"base_model": "SmolLM2-135M", "loss": "bradley_terry", "pairs": 60_917, "epochs": 1}},
        samples=2 * len(delta),
        abstained=3 if is_ensemble else 0,
        pairs=len(delta),
        figures=figures,
        findings=_findings(is_length, is_ensemble, float((longer > 0).mean())),
        sections=tuple(
            SectionResult(
                title,
                int((section == number).sum()),
                _share(right[section == number]),
                float((longer > 0)[section == number].mean()),
            )
            for number, title in enumerate(sections)
            if (section == number).any()
        ),
        by_length=tuple(bins),
        distribution=Distribution(
            tuple(hist.tolist()), tuple(np.histogram(chosen, hist)[0].tolist()), tuple(np.histogram(rejected, hist)[0].tolist())
        ),
        calibration=_calibration(p),
        length_scatter=LengthScatter(
            tuple(lengths[:600].tolist()),
            tuple(reward[:600].tolist()),
            tuple(order.tolist()),
            tuple((order / 300 if is_length else np.log(order) * 0.4).tolist()),
        ),
        formats=tuple(
            FeatureBias(
                feature,
                300 + 40 * place,
                min(0.97, base + 0.2 * is_length + float(rng.normal(0.03, 0.04))),
                base,
                0.12 - 0.05 * place,
                _share(longer_is_right[: 300 + 40 * place]),
                _share(shorter_is_right[: 200 + 30 * place]),
            )
            for place, (feature, base) in enumerate(
                [
                    ("characters", 0.62),
                    ("lines", 0.58),
                    ("list_items", 0.512),
                    ("headings", 0.49),
                    ("bold", 0.537),
                    ("code_blocks", 0.561),
                ]
            )
        ),
        members=members,
        best_of_n=_best_of_n(is_length, float(rng.normal(0, 0.02))),
        mistakes=tuple(
            JudgedPair(
                row,
                sections[row % len(sections)] if sections else "",
                _PROMPT,
                _SHORT,
                _LONG,
                -0.31 - row / 100,
                2.4,
                len(_SHORT),
                1_204,
            )
            for row in range(17, 1_217, 200)
        ),
        suite=_suite(suite, right, section, sections) if suite else None,
    )


def _findings(is_length: bool, is_ensemble: bool, base: float) -> tuple[Finding, ...]:
    """As `rm_plugins.evaluation.findings` words them."""
    if is_length:
        length = (
            f"it prefers the longer answer in 100.0% of pairs (the longer one is the better in {base:.1%}). It is "
            "right in 100.0% of pairs whose better answer is the longer, but in 0.0% of the others. Without what length predicts, its "
            "accuracy is 50.3% [47.4%, 53.1%]. Train it on pairs of equal length or with the regularizer length-correlation, or add a "
            "penalty on longer answers."
        )
        scale = (
            "its win probabilities are off by 0.221 on average. The order of its rewards stays the same; what suffers is combining "
            "rewards, thresholds and probabilities. `rm-plugins calibrate` finds a better scale."
        )
        section = "it is right in 41.2% [36.0%, 46.4%] of 206 pairs."
        return (
            Finding("length", "alarm", "Length decides", length, {"longer_chosen": base}),
            Finding("section", "warning", "In the section 'chat' it is worse than chance", section, {"accuracy": 0.412}),
            Finding("calibration", "note", "Its scale is too sure", scale, {"ece": 0.2213}),
        )
    if is_ensemble:
        members = (
            "Its 3 members agree on 76.1% of pairs, and it is right in 77.3% of those. It is right in 52.1% of the others."
        )
        return (Finding("members", "note", "", members, {"members": 3, "unanimous": 0.7612}),)
    form = "of 412 pairs that differ in list items, it prefers the answer with more in 74.0%, which is the better in 51.2%."
    return (Finding("format", "warning", "It rewards format", form, {"pairs": 412}),)


def _share(right: NDArray[np.bool_]) -> Estimate:
    return _mean(right.astype(np.float64))


def _mean(values: Values) -> Estimate:
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan)
    mean, half = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def _calibration(p: Values) -> tuple[CalibrationBin, ...]:
    both, won = np.concatenate([p, 1 - p]), np.repeat([1.0, 0.0], len(p))
    found = []
    for number in range(20):
        inside = (both >= number / 20) & (both < (number + 1) / 20)
        if inside.any():
            means = float(both[inside].mean()), float(won[inside].mean())
            found.append(CalibrationBin(number / 20, (number + 1) / 20, int(inside.sum()), *means))
    return tuple(found)


def _best_of_n(is_length: bool, shift: float) -> BestOfN:
    n = (1, 2, 4, 8, 16, 32)
    kl = tuple(math.log(count) - (count - 1) / count for count in n)
    worth = [0.42 + shift * math.sqrt(k) + 0.16 * math.sqrt(k) - (0.075 if is_length else 0.02) * k for k in kl]
    mean = tuple(Estimate(value, value - 0.021, value + 0.021) for value in worth)
    return BestOfN("is_correct", 412, n, kl, mean, tuple(0.42 + 0.29 * math.sqrt(k) for k in kl))


def _suite(suite: str, right: NDArray[np.bool_], section: NDArray[np.int64], sections: Sequence[str]) -> SuiteResult:
    scores = [float(right[section == number].mean()) for number in range(len(sections))]
    return SuiteResult(
        name=suite,
        rule="The mean accuracy of each section's subsets, weighted by their rows; the score is the mean of the sections.",
        score=float(np.mean(scores)),
        sections=tuple(
            SuiteSection(
                name, score, 1.0, int((section == number).sum()), {f"{name}-easy": score + 0.02, f"{name}-hard": score - 0.02}
            )
            for number, (name, score) in enumerate(zip(sections, scores, strict=True))
        ),
        figures={"prior sets": 0.617},
        tables=(
            SuiteTable(
                "Style of the better answer", ("plain", "detailed"), ("plain", "detailed"), ((0.71, 0.52), (0.88, math.nan))
            ),
        ),
        abstained=2,
    )


def _difference(a: str, b: str, of_a: Values, of_b: Values, section: NDArray[np.int64], sections: Sequence[str]) -> Difference:
    change = (of_b > 0).astype(np.float64) - (of_a > 0)
    found = _mean(change)
    z = abs(found.value) / max(1e-9, (found.high - found.low) / 3.92)
    pair = JudgedPair(241, sections[0] if sections else "", _PROMPT, _SHORT, _LONG, 1.82, -0.47, len(_SHORT), 1_204)
    return Difference(
        a=a,
        b=b,
        pairs=len(change),
        accuracy=found,
        p_value=max(1 / 10_001, math.erfc(z / math.sqrt(2))),
        only_a=int((change < 0).sum()),
        only_b=int((change > 0).sum()),
        sections={name: _mean(change[section == number]) for number, name in enumerate(sections) if (section == number).any()},
        won=(FlippedPair(pair, 0.17, 4.01),),
        lost=(FlippedPair(JudgedPair(57, "", _PROMPT, _LONG, _SHORT, -0.2, 0.9, 1_204, len(_SHORT)), 4.01, 0.17),),
    )
