"""Which token of a row a decoder is scored at: in the spec, the manifest, training, merging, and behind every door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.errors import ModelError, SpecError
from rm_plugins.models.manifest import Manifest
from rm_plugins.models.merge import merge_models
from rm_plugins.providers.models.model_provider import ModelProvider
from rm_plugins.rendering.rendering import Rendering
from rm_plugins.samples import RenderedSample
from tests.conftest import MakeFolder

SAMPLES = [
    rm.Sample("Name a colour.", " Blue."),
    rm.Sample("Name a colour.", " The sea is salty."),
    rm.Sample("Q: What is 2 + 2?\nA:", " 4"),
    rm.Sample("", "yes"),
    rm.Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
]


@pytest.fixture
def folder(tiny_decoder: MakeFolder) -> Path:
    return tiny_decoder(pad="<|end|>")


def by_hand(folder: Path, read: str, samples: list[rm.Sample] = SAMPLES) -> list[float]:
    """The score of each row by itself, from the hidden state of its last token, or of the last that is not padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    provider = rm.load(folder, read="before-padding")
    values = []
    for sample in samples:
        ids = tokenizer(provider.render(sample), add_special_tokens=False)["input_ids"]
        at = len(ids) - 1
        while read == "before-padding" and at and ids[at] == model.config.pad_token_id:
            at -= 1
        with torch.no_grad():
            values.append(float(model.score(model.model(torch.tensor([ids])).last_hidden_state[0, at])))
    return values


@pytest.mark.parametrize("read", ["last", "before-padding"])
@pytest.mark.parametrize("max_batch_tokens", [7, 600])
def test_the_spec_says_it(read: str, max_batch_tokens: int, folder: Path) -> None:
    provider = rm.load(folder, read=read, max_batch_tokens=max_batch_tokens)
    expected = by_hand(folder, read)
    np.testing.assert_allclose(provider.score(SAMPLES).values, expected, atol=1e-5)
    assert isinstance(provider, ModelProvider) and provider.trained.read == read


def test_the_two_differ_and_have_names_of_their_own(folder: Path) -> None:
    one, other = (rm.load(folder, read=read) for read in ("last", "before-padding"))
    assert np.abs(one.score(SAMPLES).values - other.score(SAMPLES).values)[:3].min() > 0.01
    assert one.identity != other.identity


def test_a_kept_score_is_of_one_of_them(folder: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "scores.sqlite")
    plain = [rm.load(folder, read=read).score(SAMPLES).values for read in ("last", "before-padding")]
    kept = [rm.load(folder, read=read, cache=file).score(SAMPLES).values for read in ("last", "before-padding")]
    np.testing.assert_array_equal(kept, plain)


def test_what_nobody_tells_is_warned_of(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"pads with its EOS token .*`read: before-padding` or `read: last`"):
        provider = rm.load(folder)
    np.testing.assert_allclose(provider.score(SAMPLES).values, by_hand(folder, "before-padding"), atol=1e-5)


def test_another_padding_token_leaves_nothing_to_tell(tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    one, other = (rm.load(folder, read=read).score(SAMPLES).values for read in ("last", "before-padding"))
    np.testing.assert_array_equal(rm.load(folder).score(SAMPLES).values, one)
    np.testing.assert_array_equal(one, other)


def test_a_misspelt_one(folder: Path) -> None:
    with pytest.raises(SpecError, match="read"):
        rm.load(folder, read="first")


def test_merging_keeps_it(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    members = []
    for number in range(2):
        member = tiny_decoder(pad="<|end|>")
        provider = rm.load(member, read="last")
        assert isinstance(provider, ModelProvider)
        rendering = provider.renderer.rendering
        Manifest(created_by={}, rendering=rendering, dtype="float32").write(member)
        members.append(str(member))
        assert json.loads((member / "reward_manifest.json").read_text())["rendering"]["read"] == "last", number
    merge_models(members, tmp_path / "out")
    merged = rm.load(tmp_path / "out")
    np.testing.assert_allclose(merged.score(SAMPLES).values, by_hand(tmp_path / "out", "last"), atol=1e-5)
    assert isinstance(merged, ModelProvider) and merged.verify() == []  # golden scores are read at the same token


def test_members_that_are_read_otherwise_are_not_averaged(tiny_decoder: MakeFolder, tmp_path: Path) -> None:
    members = [tiny_decoder(pad="<|end|>") for _ in range(2)]
    for member, read in zip(members, ("last", "before-padding"), strict=True):
        rendering = Rendering("tokenizer", True, None, read=read)  # type: ignore[arg-type]
        Manifest(created_by={}, rendering=rendering, dtype="float32").write(member)
    with pytest.raises(ModelError, match="read is 'before-padding', not 'last'"):
        merge_models(list(map(str, members)), tmp_path / "out")


def test_a_manifest_from_before_it_was_said(folder: Path) -> None:
    rendering: dict[str, Any] = Rendering("tokenizer", True, None).as_json()
    del rendering["read"], rendering["pair"]
    (folder / "reward_manifest.json").write_text(
        json.dumps({"version": 1, "created_by": {}, "dtype": "float32", "rendering": rendering})
    )
    np.testing.assert_allclose(rm.load(folder).score(SAMPLES).values, by_hand(folder, "before-padding"), atol=1e-5)


@pytest.fixture
def readers(folder: Path) -> dict[str, Any]:
    """The provider of each place to read at."""
    return {read: rm.load(folder, read=read) for read in ("before-padding", "last")}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(["<|end|>", " sea", "Blue", "\n"]), max_size=6).map("".join))
def test_a_row_without_what_is_not_read_has_the_same_score(text: str, readers: dict[str, Any]) -> None:
    provider = readers["before-padding"]
    assert isinstance(provider, ModelProvider)
    (row,), _ = provider.renderer.token_ids([rm.Sample("Name a colour.", text)])
    short = provider.renderer.up_to_read(row)
    assert short[-1] != provider.renderer.pad_token_id
    rows = [RenderedSample.of(ids) for ids in (row, short)]
    for reader in readers.values():  # the short one is for those who read the last
        np.testing.assert_allclose(reader.score(rows).values[1], provider.score(rows).values[0], atol=1e-5)
