"""A model that was trained on conversations says so when it is given text, and the other way round."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.evaluation import evaluate
from rm_plugins.models.manifest import MANIFEST_NAME, Manifest, SampleFormat
from rm_plugins.models.merge import merge_models
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.samples import RenderedSample
from tests.conftest import MakeFolder

TEXT = [rm.Sample("Name a colour.", answer) for answer in (" blue", " two")]
CONVERSATIONS = [rm.Sample([{"role": "user", "content": "Name a colour."}], answer) for answer in ("blue", "two")]
BY_FORMAT = {"text": TEXT, "conversations": CONVERSATIONS}


def with_manifest(folder: Path, trained_on: SampleFormat | None, **settings: Any) -> Path:
    rendering = Rendering("plain", append_eos=True, max_length=64)
    Manifest(created_by={}, rendering=rendering, dtype="float32", trained_on=trained_on, **settings).write(folder)
    return folder


@pytest.mark.parametrize("trained_on", ["text", "conversations"])
def test_another_format_is_warned_of_once(
    tiny_decoder: MakeFolder, caplog: pytest.LogCaptureFixture, trained_on: SampleFormat
) -> None:
    rewards = rm.load(with_manifest(tiny_decoder(), trained_on))
    other = "conversations" if trained_on == "text" else "text"
    scores = rewards.score(BY_FORMAT[trained_on])
    assert not caplog.records and "other_format" not in scores.metadata
    for _ in range(3):
        scores = rewards.score([*BY_FORMAT[other], BY_FORMAT[trained_on][0]])
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"was trained on {trained_on}, and 2 of 3 samples are {other}. " in record.getMessage()
    assert "Give" in record.getMessage()
    assert scores.metadata["other_format"] == 2
    assert rewards.counts["other_format"] == 6


@pytest.mark.parametrize("samples", [TEXT, CONVERSATIONS])
def test_nothing_is_said_where_the_format_is_not_known(
    tiny_decoder: MakeFolder, caplog: pytest.LogCaptureFixture, samples: list[rm.Sample]
) -> None:
    folder = with_manifest(tiny_decoder(), None)
    assert "trained_on" not in json.loads((folder / MANIFEST_NAME).read_text())
    rm.load(folder).score(samples)
    rm.load(tiny_decoder()).score(samples)
    assert not caplog.records


def test_a_text_that_is_rendered_already_is_of_no_format(tiny_decoder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    rm.load(with_manifest(tiny_decoder(), "conversations")).score([RenderedSample.of("blue")])
    assert not caplog.records


@pytest.mark.parametrize(
    ("formats", "common"),
    [(("text", "text"), "text"), (("text", "conversations"), None), (("text", None), None)],
)
def test_a_merged_model_has_the_common_format(
    tiny_decoder: MakeFolder, tmp_path: Path, formats: tuple[SampleFormat | None, ...], common: SampleFormat | None
) -> None:
    folders = [with_manifest(tiny_decoder(), one) for one in formats]
    assert merge_models([str(folder) for folder in folders], tmp_path / "merged").trained_on == common
    assert Manifest.read(tmp_path / "merged" / MANIFEST_NAME).trained_on == common


def test_an_evaluation_says_it_first(tiny_decoder: MakeFolder) -> None:
    rewards = rm.load(with_manifest(tiny_decoder(), "conversations"))
    rows = [{"prompt": f"Q{number}", "chosen": " blue", "rejected": " two"} for number in range(8)]
    result = evaluate(rewards, rows, resamples=5).rewards[0]
    (finding,) = [finding for finding in result.findings if finding.kind == "trained_on"]
    assert "a model was trained on conversations, and 16 of 16 samples here are text" in finding.message
    assert finding.numbers == {"samples": 16, "other_format": 16}
    asked = [
        {name: [{"role": "user", "content": row["prompt"]}] if name == "prompt" else text for name, text in row.items()}
        for row in rows
    ]
    answered = [
        {name: [{"role": "assistant", "content": text}] if name != "prompt" else text for name, text in row.items()}
        for row in asked
    ]
    assert "trained_on" not in {finding.kind for finding in evaluate(rewards, answered, resamples=5).rewards[0].findings}
