"""What real engines do with our adapters beside the scores, which `tests.engines.test_every_path` compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.samples import RenderedSample
from tests.engines.engine_samples import engine_rows


@pytest.mark.parametrize(
    ("engine", "calls"), [("verl", 3 * 256 + 8), ("openrlhf", 2 * 256), ("verifiers", 256), ("areal", 256)]
)
def test_single_samples_meet_in_batches(engine: str, calls: int, results: dict[str, Any]) -> None:
    assert results[engine]["counts"]["samples"] == calls
    assert results[engine]["counts"]["batches"] < calls / 3


def test_a_query_can_be_scored_unchanged(results: dict[str, Any], folder: Path) -> None:
    from transformers import AutoTokenizer

    members = json.loads((folder / "reward.yaml").read_text(encoding="utf-8"))["members"]
    tokenizer = AutoTokenizer.from_pretrained(members[0]["model"])
    queries = [
        tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
        + row["completion"]
        + "<|end|>"
        for row in engine_rows()
    ]
    rendered = [RenderedSample.of(query, add_special_tokens=False) for query in queries]
    values = rm.load(folder / "reward.yaml").score(rendered).values.tolist()
    assert results["openrlhf"]["rendered"]["values"] == pytest.approx(values, abs=1e-4)


def test_a_rendered_prompt_is_not_rendered_again(results: dict[str, Any]) -> None:
    assert results["openrlhf"]["auto"]["values"] == [None]


def test_engines_log_the_details(results: dict[str, Any]) -> None:
    extra = results["verl"]["manager"]["extra"]
    assert set(extra) == {"score", "member/0", "rm_no_reward", "rm_error", "rm_fingerprint"}
    assert (extra["rm_no_reward"], extra["rm_error"]) == ([0.0] * 3, [""] * 3)
    assert extra["member/0"] != extra["score"]
    assert results["openrlhf"]["column:messages"]["extra"] == {"rm_no_reward": 0.0}
    reward = results["verifiers"]["reward"]
    assert reward["extra"] == {"metrics": {"rm_no_reward": 0.0}, "weighted": pytest.approx(2 * reward["values"][0])}


def test_ms_swift_makes_zero_of_a_none_which_our_reward_never_returns(results: dict[str, Any]) -> None:
    """If this fails because `their None` is no longer 0, ms-swift may be able to leave out samples."""
    assert results["swift"]["without"] == {"their None": 0.0, "ours": -5.0}
