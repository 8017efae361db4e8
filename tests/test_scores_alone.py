"""A row has the score that it gets alone from a model that was just loaded, whatever else is scored with it or was before."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, set_seed

from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.engine.lengths import LengthClasses
from tests.test_scoring_engine import make_model

_SHORT = [1.0, 1.1, 1.3, 1.6]
_LONG = [1.0, 4.0, 9.0, 30.0]
ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 24},
    "longrope": {
        **{"rope_type": "longrope", "short_factor": _SHORT, "long_factor": _LONG, "rope_theta": 10_000.0},
        **{"factor": 4.0, "original_max_position_embeddings": 24},
    },
}


def rope_model(kind: str) -> Any:
    """A decoder whose positions change beyond 24 tokens."""
    longest = 24 if kind == "dynamic" else 96
    return make_model("llama", rope_parameters=ROPES[kind], max_position_embeddings=longest)


class Mean(nn.Module):
    """What a layer that looks around adds."""

    def __init__(self, dim: int, longer_than: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.longer_than = longer_than

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden - hidden.mean(self.dim, keepdim=True) if hidden.shape[1] > self.longer_than else hidden


class Remembering(nn.Module):
    """A layer that keeps the longest row that it has seen."""

    longest: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.register_buffer("longest", torch.zeros(()), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.count = max(self.count, hidden.shape[1])
        self.longest.fill_(self.count)
        return hidden * (1 + self.longest / 50)


def hooked(family: str, make: Callable[[], nn.Module]) -> Any:
    """A classifier whose embeddings go through a module, as code of a model's own may have them do."""
    model, module = make_model(family), make()
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: module(output))
    model.add_module("looking", module)
    return model.eval()


MODELS: dict[str, Callable[[], Any]] = {
    "dynamic RoPE": lambda: rope_model("dynamic"),
    "long RoPE": lambda: rope_model("longrope"),
    "an encoder without masks": lambda: make_model("fnet", type_vocab_size=2),
    "a norm over the sequence": lambda: hooked("bert", lambda: Mean(1)),
    "a norm over the sequence of a decoder": lambda: hooked("llama", lambda: Mean(1)),
    "a norm over the batch": lambda: hooked("bert", lambda: Mean(0)),
    "a norm over long batches": lambda: hooked("bert", lambda: Mean(1, longer_than=32)),
    "a memory": lambda: hooked("bert", Remembering),
    "a decoder": lambda: make_model("qwen2"),
    "an encoder": lambda: make_model("bert"),
}
RIGHT = ("a decoder", "an encoder", "dynamic RoPE", "long RoPE")
"""What runs right without being told, because its configuration says how."""


def alone(make: Callable[[], Any], rows: list[list[int]]) -> Any:
    """transformers' own scores, each by a model that has seen nothing before."""
    scores = {}
    for row in map(tuple, rows):
        if row not in scores:
            with torch.inference_mode():
                scores[row] = make()(input_ids=torch.tensor([list(row)])).logits.double().numpy()[0]
    return np.array([scores[tuple(row)] for row in rows])


ROWS = [[random.Random(size).randrange(4, 60) for _ in range(size)] for size in (1, 3, 17, 23, 24, 25, 31, 40, 41, 47, 63)]
PROMPT = ROWS[5][:20]
ROWS += [[*PROMPT, *ROWS[place][:size]] for place, size in ((0, 1), (2, 2), (3, 9), (7, 30), (8, 31))]
KNOWN: dict[str, Any] = {}


def known(kind: str) -> Any:
    if kind not in KNOWN:
        KNOWN[kind] = alone(MODELS[kind], ROWS)
    return KNOWN[kind]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:.*gives a row another score in a batch")
@pytest.mark.filterwarnings("ignore:.*does not give the same scores from cached prompts")
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    calls=st.lists(st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=12), min_size=1, max_size=4),
    max_tokens=st.sampled_from([64, 200, 4_000]),
)
def test_whatever_is_scored_with_it_or_before(kind: str, calls: list[list[int]], max_tokens: int) -> None:
    expected = known(kind)
    engine = ScoringEngine(MODELS[kind](), max_tokens)
    for numbers in calls:
        outputs, _ = engine.outputs([ROWS[number] for number in numbers])
        np.testing.assert_allclose(outputs, expected[numbers], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in (*RIGHT, "a memory")])
def test_it_is_said_once(kind: str) -> None:
    engine = ScoringEngine(MODELS[kind](), 4_000, share_prefixes=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            engine.outputs(ROWS)
    messages = [str(warning.message) for warning in told]
    assert 1 <= len(messages) <= 2
    assert all("gives a row another score in a batch than alone" in message for message in messages)


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_right_is_not_slowed(kind: str) -> None:
    engine = ScoringEngine(MODELS[kind](), 4_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.outputs(ROWS)
    calls: list[int] = []
    engine.model.get_input_embeddings().register_forward_hook(lambda _, inputs, output: calls.append(len(inputs[0])))
    engine.outputs(ROWS)
    assert len(calls) < len(ROWS) + (kind == "dynamic RoPE")


def test_a_check_of_short_rows_does_not_vouch_for_long_ones() -> None:
    """Beginnings that are shared by short rows are right here, and those that long ones share are not."""
    engine = ScoringEngine(rope_model("longrope"), 4_000)
    short = [[*PROMPT[:14], 5], [*PROMPT[:14], 6, 7], [*PROMPT[:14], 8]]
    engine.outputs(short)
    long = [[*PROMPT, *range(4, 30)], [*PROMPT, *range(30, 50)], [*PROMPT, 9]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs, _ = engine.outputs(long)
    np.testing.assert_allclose(outputs, alone(MODELS["long RoPE"], long), rtol=1e-4, atol=1e-4)


def test_a_model_that_was_run_before_begins_anew() -> None:
    model = rope_model("dynamic")
    with torch.inference_mode():
        model(input_ids=torch.tensor([ROWS[10]]))
    row = [ROWS[7]]
    np.testing.assert_allclose(ScoringEngine(model).outputs(row)[0], alone(MODELS["dynamic RoPE"], row), rtol=1e-4, atol=1e-4)


def test_classes_end_where_the_configuration_says() -> None:
    classes = LengthClasses(rope_model("longrope").config)
    assert classes.of(24) != classes.of(25) == classes.of(32) != classes.of(33) == classes.of(64) != classes.of(65)
    assert classes.of(96) != classes.of(97)


ENCODERS = (
    *("albert", "bert", "big_bird", "camembert", "convbert", "ctrl", "data2vec-text", "deberta", "deberta-v2", "distilbert"),
    *("electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "gte", "ibert", "jina_embeddings_v3", "longformer"),
    *("megatron-bert", "mobilebert", "modernbert", "modernbert-decoder", "mpnet", "mra", "nomic_bert", "nystromformer"),
    *("openai-gpt", "rembert", "roberta", "roberta-prelayernorm", "roformer", "squeezebert", "tapas", "xlm", "xlm-roberta"),
    *("xlm-roberta-xl", "xlnet", "yoso"),
)
"""What transformers classifies sequences with that is read by its own head, and can be made small."""

_SIZES = {
    32: ("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"),
    2: ("num_hidden_layers", "n_layer", "n_layers"),
    4: ("num_attention_heads", "n_head", "n_heads"),
    48: ("intermediate_size", "hidden_dim", "dff", "d_inner"),
    8: ("d_head", "head_dim"),
}
_TOKENS = {"vocab_size": 64, "max_position_embeddings": 160, "pad_token_id": 0, "num_labels": 1}


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.filterwarnings("ignore:.*gives a row another score in a batch")
def test_a_family_of_encoders(family: str) -> None:
    if family not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have it")
    config = CONFIG_MAPPING[family]
    default = config()
    known = {*default.to_dict(), *config.attribute_map}
    sizes = {name: size for size, names in _SIZES.items() for name in names} | _TOKENS
    set_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        config(**{name: size for name, size in sizes.items() if name in known})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # otherwise all scores are nearly the same
    rows = [
        [random.Random(size).randrange(4, 60) for _ in range(size)] for size in (3, 70, 9, 33, 8, 130, 64, 65, 17, 16, 5, 40)
    ]
    with torch.inference_mode():
        model.eval()
        given = [
            {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in rows
        ]
        expected = np.concatenate([model(**one).logits.double().numpy() for one in given])
    assert expected.std() > 1e-3
    engine = ScoringEngine(model, 500)
    for order in (range(len(rows)), range(len(rows) - 1, -1, -1)):
        outputs, _ = engine.outputs([rows[number] for number in order])
        np.testing.assert_allclose(outputs, expected[[*order]], rtol=1e-4, atol=1e-4 * (1 + np.abs(expected).max()))
