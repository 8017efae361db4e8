"""Ensembles that are one loaded model: heads on one backbone, LoRA adapters of one base, passes with dropout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.models.heads import Heads
from rm_plugins.scores import FloatArray
from rm_plugins.testing import check_provider
from rm_plugins.training.reward_state import restore_reward_state, reward_state
from tests.cheap_ensembles.conftest import SAMPLES, members, near, values, written
from tests.conftest import MakeFolder


class TestHeads:
    @pytest.fixture
    def folder(self, tiny_decoder: MakeFolder) -> Path:
        """Three members with one output each."""
        folder = tiny_decoder(num_labels=3)
        written(folder, heads=Heads(members=3), mean=2.0, std=4.0)
        return folder

    @pytest.fixture
    def outputs(self, folder: Path) -> FloatArray:
        """What the model's heads give, [N, 3]."""
        scores = rm.load(folder, head=0).score(SAMPLES)
        return np.stack([scores.columns[f"head/LABEL_{number}"] for number in range(3)], axis=1)

    def test_their_mean_by_default(self, folder: Path, outputs: FloatArray) -> None:
        scores = rm.load(folder).score(SAMPLES)
        near(scores.values, outputs.mean(axis=1))
        near(members(scores, 3), outputs.T)
        near(scores.columns["std"], outputs.std(axis=1))
        assert scores.columns["std"].min() > 0.01
        assert np.isnan(scores.columns["rank_disagreement"][-1])  # its prompt has one completion
        assert np.nanmax(scores.columns["rank_disagreement"]) > 0
        assert scores.metadata["missing_members"] == 0

    def test_an_aggregate(self, folder: Path, outputs: FloatArray) -> None:
        near(values(folder, aggregate="min", common_scale=True), outputs.min(axis=1))
        bound = values(folder, aggregate={"name": "lcb", "k": 2.0}, common_scale=True)
        near(bound, outputs.mean(axis=1) - 2 * outputs.std(axis=1))

    def test_transforms_of_the_members(self, folder: Path, outputs: FloatArray) -> None:
        chain = [
            {"name": "scale", "factor": 2.0},
            {"name": "scale", "shift": 1.0},
            [{"name": "clip", "low": 0.0}, {"name": "scale"}],
        ]
        scores = rm.load(folder, aggregate="max", member_transforms=chain).score(SAMPLES)
        expected = np.stack([outputs[:, 0] * 2, outputs[:, 1] - 1, np.clip(outputs[:, 2], 0, None)])
        near(scores.values, expected.max(axis=0))
        near(members(scores, 3), expected)
        near([scores.columns[f"member/{number}/raw"] for number in range(3)], outputs.T)
        near(scores.columns["std"], expected.std(axis=0))

    def test_members_of_several_outputs(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder(num_labels=4)
        columns = rm.load(folder, head=0).score(SAMPLES).columns
        outputs = np.stack([columns[f"head/LABEL_{number}"] for number in range(4)], axis=1)
        written(folder, heads=Heads(("helpful", "brief"), (1.0, -0.5), members=2))
        scores = rm.load(folder).score(SAMPLES)
        each = np.stack([outputs[:, 0] - 0.5 * outputs[:, 1], outputs[:, 2] - 0.5 * outputs[:, 3]])
        near(members(scores, 2), each)
        near(scores.values, each.mean(axis=0))

    def test_the_backbone_runs_once(self, folder: Path, tiny_decoder: MakeFolder) -> None:
        work = rm.load(folder, aggregate="median").score(SAMPLES).metadata
        one = rm.load(tiny_decoder()).score(SAMPLES).metadata
        assert {name: work[name] for name in ("rows", "tokens", "unique_tokens", "padded_tokens", "duplicates")} == {
            name: one[name] for name in ("rows", "tokens", "unique_tokens", "padded_tokens", "duplicates")
        }

    def test_the_statistics_are_those_of_the_plain_mean(self, folder: Path, outputs: FloatArray) -> None:
        near(values(folder, transform="zscore"), (outputs.mean(axis=1) - 2) / 4)
        near(values(folder, aggregate="mean", transform="zscore"), (outputs.mean(axis=1) - 2) / 4)
        for settings in ({"aggregate": "median"}, {"member_transforms": ["scale"] * 3}, {"head": 0}):
            with pytest.raises(SpecError, match="transform: zscore needs `mean` and `std`"):
                rm.load(folder, transform="zscore", **settings)

    def test_what_transforms_learn_is_kept(self, folder: Path) -> None:
        settings: dict[str, Any] = {"member_transforms": [{"name": "zscore", "running": True, "warmup": 2}] * 3}
        provider = rm.load(folder, **settings)
        provider.score(SAMPLES)
        state = reward_state(provider)
        assert list(state) == [f"member_transforms[{number}]" for number in range(3)]
        other = rm.load(folder, **settings)
        restore_reward_state(other, json.loads(json.dumps(state)))
        assert reward_state(other) == state
        assert other.score(SAMPLES).values.tolist() == provider.score(SAMPLES).values.tolist()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"member_transforms": ["scale"] * 2}, r"^member_transforms: there are 2 for 3 members; give one per member"),
            (
                {"member_transforms": ["scale", "zscore", "scale"]},
                r"^member_transforms\[1\]: zscore needs `mean`.*'member 1 of ",
            ),
            ({"member_transforms": ["scale", "scal", "scale"]}, r"^member_transforms\[1\]: .*'scale'"),
            ({"aggregate": {"name": "weighted", "weights": [1.0]}}, r"^aggregate\.weights: there are 1 weights for 3 members"),
            ({"aggregate": "medain"}, r"^aggregate: .*'median'"),
            ({"aggregate": "min", "head": 0}, r"^aggregate: .* has a single member here.*and the key `head`"),
        ],
    )
    def test_what_does_not_fit_is_named(self, settings: dict[str, Any], message: str, folder: Path) -> None:
        with pytest.raises((SpecError, LookupError), match=message):
            rm.load(folder, **settings)

    @pytest.mark.parametrize("key", [{"aggregate": "mean"}, {"member_transforms": ["scale"]}])
    def test_one_member_has_nothing_to_combine(self, key: dict[str, Any], tiny_decoder: MakeFolder) -> None:
        with pytest.raises(
            SpecError, match=rf"^{next(iter(key))}: .*`RewardConfig\(members=5\)`, or combine .*`provider: ensemble`"
        ):
            rm.load(tiny_decoder(), **key)

    def test_a_missing_scale_is_warned_of_once(self, folder: Path) -> None:
        with pytest.warns(
            UserWarning, match=r"aggregate 'min' of .* needs a common scale, but all of its members have no transform"
        ) as caught:
            provider = rm.load(folder, aggregate="min")
        assert len(caught) == 1
        provider.score(SAMPLES)
        rm.load(folder, aggregate="min", member_transforms=["scale"] * 3)

    def test_the_contract_and_the_manifest(self, folder: Path) -> None:
        provider = rm.load(folder, aggregate="max", member_transforms=["scale"] * 3)
        check_provider(provider, SAMPLES)
        assert provider.verify() == []  # type: ignore[attr-defined]
        assert rm.load(dict(provider.spec or {})).spec == provider.spec
