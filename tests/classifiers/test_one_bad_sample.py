"""What is wrong with one sample is that sample's failure, whatever takes it, and the others have their scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

import rm_plugins as rm
from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.errors import RmPluginsError
from rm_plugins.models.embeddings import embedded_positions, embedded_tokens
from rm_plugins.rendering.positions import position_limit
from tests.conftest import MakeFolder

GOOD = [rm.Sample("Name a colour.", " Blue."), rm.Sample("Say nothing.", ""), rm.Sample("Q: 2+2?\n", "4")]
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}"
)
SMALL: dict[str, Any] = {
    **{"vocab_size": 60, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"max_position_embeddings": 40, "pad_token_id": 1, "num_labels": 1},
}
FAMILIES: dict[str, dict[str, Any]] = {
    **{
        name: {}
        for name in (
            "bert",
            "electra",
            "roberta",
            "camembert",
            "xlm-roberta",
            "xlm-roberta-xl",
            "data2vec-text",
            "ibert",
            "mpnet",
        )
    },
    **{
        name: {}
        for name in ("mpnet", "roberta-prelayernorm", "gpt2", "nystromformer", "yoso", "albert", "deberta", "deberta-v2", "mra")
    },
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 2, "token_dropout": False},
    "luke": {"entity_vocab_size": 4},
    "longformer": {"attention_window": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32},
    "biogpt": {},
    "distilbert": {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
}


def template(folder: Path) -> rm.Sample:
    (folder / "chat_template.jinja").write_text(NO_SYSTEM)
    return rm.Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], "4")


BAD: dict[str, tuple[Callable[[Path], rm.Sample], str]] = {
    "a lone surrogate": (lambda folder: rm.Sample("Q", "half \ud83d"), "lone surrogate"),
    "a role that the template refuses": (template, "no system"),
    "an id beyond the embedding": (lambda folder: rm.samples.RenderedSample.of([5, 100_000]), "the id 100000"),
    "a part that is no text": (lambda folder: rm.Sample([{"role": "user", "content": [{"type": "image"}]}], "4"), "'image'"),
}


@pytest.mark.parametrize("what", BAD)
class TestABadSample:
    @pytest.fixture
    def batch(self, what: str, tiny_decoder: MakeFolder) -> tuple[Path, list[rm.Sample]]:
        folder = tiny_decoder()
        return folder, [GOOD[0], BAD[what][0](folder), *GOOD[1:]]

    def test_it_is_named(self, what: str, batch: tuple[Path, list[rm.Sample]]) -> None:
        folder, samples = batch
        with pytest.raises(RmPluginsError, match=BAD[what][1]) as caught:
            rm.load(str(folder)).score(samples)
        assert caught.value.rows == frozenset({1})

    @pytest.mark.parametrize("on_error", ["abstain", {"fallback": {"provider": "constant", "value": 9.0}}], ids=str)
    def test_the_others_are_scored(self, what: str, batch: tuple[Path, list[rm.Sample]], on_error: Any) -> None:
        folder, samples = batch
        scores = rm.load(str(folder), on_error=on_error).score(samples)
        expected = rm.load(str(folder)).score(GOOD).values
        np.testing.assert_allclose(np.delete(scores.values, 1), expected, rtol=1e-5)
        assert scores.values[1] == 9.0 if on_error != "abstain" else np.isnan(scores.values[1])

    def test_a_quorum_goes_on_without_it(self, what: str, batch: tuple[Path, list[rm.Sample]]) -> None:
        folder, samples = batch
        members = [str(folder), {"provider": "constant", "value": 1.0}]
        scores = rm.load({"provider": "ensemble", "members": members, "quorum": 1}).score(samples)
        assert scores.values[1] == 1.0 and not scores.errors and bool(np.isfinite(scores.values).all())


@pytest.mark.filterwarnings("ignore:.*gives a row another score in a batch")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_takes_as_many_tokens_as_is_said_of_it(family: str) -> None:
    config = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    limit = position_limit(config)
    assert limit is not None and limit <= embedded_positions(model)
    assert embedded_tokens(model) == 60
    ids = [torch.randint(5, 60, (limit,)).tolist(), [7, 8, 9]]
    assert bool(np.isfinite(ScoringEngine(model).outputs(ids)[0]).all())


def test_a_number_below_one_is_no_limit() -> None:
    assert position_limit(AutoConfig.for_model("xlnet")) is None
    assert position_limit(AutoConfig.for_model("bloom")) is None


def test_rows_beyond_learned_positions_are_named(tiny_encoder: MakeFolder) -> None:
    folder = tiny_encoder(family="roberta", positions=24)
    samples = [rm.Sample("", "blue"), rm.Sample("", "blue " * 60)]
    whole = rm.load(str(folder))
    assert np.isfinite(whole.score(samples).values).all()  # cut to what the model takes
    forced = rm.load(str(folder), max_length=50, on_error="abstain").score(samples)
    assert forced.values[0] == pytest.approx(whole.score(samples).values[0], abs=1e-5) and np.isnan(forced.values[1])
    assert "positions for 25 tokens" in str(forced.errors[1])


@pytest.mark.parametrize(
    "spec",
    [
        {"provider": "route", "column": "topic", "routes": {"math": {"provider": "constant", "value": 1.0}}},
        {"provider": "math-verify"},
        {"provider": "cached", "path": "memory", "reward": {"provider": "constant", "value": 1.0}},
    ],
    ids=lambda spec: spec["provider"],
)
def test_a_bad_column_fails_its_sample_alone(spec: dict[str, Any]) -> None:
    good = {"topic": "math", "solution": "4"}
    bad = {"topic": object(), "solution": object()}
    samples = [rm.Sample("2+2?", "4", columns) for columns in (good, bad, good, {**bad})]
    scores = rm.load({**spec, "on_error": "abstain"}).score(samples)
    np.testing.assert_equal(scores.values, [1.0, np.nan, 1.0, np.nan])
    assert set(scores.errors) == {1, 3}
    with pytest.raises(RmPluginsError) as caught:
        rm.load(spec).score(samples)
    assert caught.value.rows is not None and caught.value.rows <= {1, 3}
