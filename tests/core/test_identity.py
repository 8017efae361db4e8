"""What identifies a reward: all that it was made of, as that was when it was read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.component import LocalPath
from rm_plugins.constructor_schema import announces, schema_of
from rm_plugins.identity import fingerprint
from rm_plugins.providers.combinators.cached import Cached
from rm_plugins.providers.rules.json_schema import JsonSchema
from rm_plugins.providers.rules.length_window import LengthWindow
from rm_plugins.providers.rules.phrases import Phrases
from rm_plugins.registry import default_registry
from rm_plugins.transforms import Chain, Clip, Scale
from tests.conftest import MakeFolder

JUDGE: dict[str, Any] = {"provider": "remote", "url": "http://127.0.0.1:1"}
ASKED = {"name": "openai", "url": "http://127.0.0.1:1"}
SCORES = {"provider": "constant", "value": 1.0}
FIRST, SECOND = ('{"score": 1.0}\n{"score": 2.0}\n' * 15, '{"score": 1.0}\n{"score": 4.0}\n' * 15)


class Words(rm.Provider):
    """A provider of a plug-in that reads a file."""

    name: ClassVar[str] = "words"

    def __init__(self, *, words: Annotated[str, LocalPath]) -> None:
        self._known = set(Path(words).read_text(encoding="utf-8").split())

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        return rm.Scores(np.array([float(str(sample.completion) in self._known) for sample in samples]))


def scores_of(transform: str) -> dict[str, Any]:
    return {**SCORES, "transform": {"name": transform, "reference": "file.jsonl"}}


READING: dict[str, tuple[dict[str, Any], str, str]] = {
    "json-schema.schema": ({"provider": "json-schema", "schema": "file.json"}, '{"type": "string"}', '{"type": "integer"}'),
    "openai-judge.rubric_file": (
        {**JUDGE, "protocol": {"name": "openai-judge", "rubric_file": "file.txt"}},
        "Good? {completion}",
        "Bad? {completion}",
    ),
    "judge.template": (
        {"provider": "judge", "judge": ASKED, "template": "file.jinja"},
        "Good? {{ completion }}",
        "Bad? {{ completion }}",
    ),
    "rubric.template": (
        {"provider": "rubric", "judge": ASKED, "criteria": ["Is good."], "template": "file.jinja"},
        "{{ completion }} {{ criteria }}",
        "{{ criteria }} {{ completion }}",
    ),
    "tool-arguments.tools": (
        {"provider": "tool-arguments", "tools": "file.json"},
        '[{"name": "a"}]',
        '[{"name": "a", "parameters": {"type": "object", "required": ["b"]}}]',
    ),
    "zscore.reference": (scores_of("zscore"), FIRST, SECOND),
    "min-max.reference": (scores_of("min-max"), FIRST, SECOND),
    "log-sigmoid-centred.reference": (scores_of("log-sigmoid-centred"), FIRST, SECOND),
    "par.reference": (scores_of("par"), FIRST, SECOND),
    "words.words": ({"provider": "words", "words": "file.txt"}, "a b", "a c"),
}
"""Of every key that names a file: a spec, what the file holds, and what it holds after an edit."""

OF_MODELS = {"adapters", "chat_template", "model", "tokenizer"}
"""Keys of which the identity has the model itself."""

WITHOUT_EFFECT = {"openai.ca_file", "remote.ca_file"}


@pytest.fixture
def load() -> Callable[..., rm.Provider]:
    class Plugin:
        @rm.hookimpl
        def rm_register_providers(self) -> list[type[rm.Provider]]:
            return [Words]

    registry = rm.Registry([Plugin()])
    return lambda spec: rm.load(spec, registry=registry)


def test_every_key_that_names_a_file_is_looked_at() -> None:
    keys = {
        f"{name}.{key}"
        for kind in ("provider", "transform", "aggregate", "protocol", "judge")
        for name, registered in default_registry().all(kind).items()
        for key, annotation in schema_of(registered.cls).items()  # type: ignore[arg-type]  # a class is hashable
        if announces(annotation, LocalPath) and key not in OF_MODELS
    }
    assert keys == (READING.keys() - {"words.words"}) | WITHOUT_EFFECT


@pytest.mark.parametrize("where", ["the spec", "a list", "a fallback", "a cache"])
@pytest.mark.parametrize("key", READING)
def test_an_edited_file_makes_another_reward(
    key: str, where: str, load: Callable[..., rm.Provider], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inner, before, after = READING[key]
    spec: dict[str, Any] = {
        "the spec": inner,
        "a list": {"provider": "sum", "members": [SCORES, inner]},
        "a fallback": {**SCORES, "on_error": {"fallback": inner}},
        "a cache": {"provider": "cached", "reward": inner, "path": "memory"},
    }[where]
    (file,) = [tmp_path / str(name) for name in _texts(inner) if str(name).startswith("file.")]
    file.write_text(before, encoding="utf-8")
    early, same = load(spec), load(spec)
    file.write_text(after, encoding="utf-8")
    late = load(spec)
    assert fingerprint(early) == fingerprint(same)  # it is what was read, not what is there by now
    assert fingerprint(late) != fingerprint(early)
    file.write_text(before, encoding="utf-8")
    assert fingerprint(load(spec)) == fingerprint(early)


def test_a_cache_never_answers_from_before_an_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sample, file = [rm.Sample("", "5")], tmp_path / "schema.json"
    file.write_text('{"type": "string"}')
    reward = rm.load({"provider": "json-schema", "schema": "schema.json"})
    file.write_text('{"type": "integer"}')
    assert Cached(reward=reward, path="scores.sqlite").score(sample).values.tolist() == [0.0]
    late = rm.load({"provider": "json-schema", "schema": "schema.json"})
    assert Cached(reward=late, path="scores.sqlite").score(sample).values.tolist() == [1.0]


@settings(max_examples=10, deadline=None)  # a process checks each schema
@given(schemas=st.lists(st.sampled_from(["string", "integer", "null", "boolean", "array"]), min_size=2, max_size=5))
def test_any_edits(schemas: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("edits")
    sample = [rm.Sample("", "5")]
    for kind in schemas:
        (folder / "schema.json").write_text(json.dumps({"type": kind}))
        spec = {"provider": "json-schema", "schema": str(folder / "schema.json")}
        cached = rm.load({"provider": "cached", "reward": spec, "path": str(folder / "scores.sqlite")})
        assert cached.score(sample).values.tolist() == [float(kind == "integer")]


class TestMadeInPython:
    """Without a spec, it is what a reward holds."""

    def test_a_file_that_was_edited(self, tmp_path: Path) -> None:
        sample, file = [rm.Sample("", "5")], tmp_path / "schema.json"
        for kind, score in (("string", 0.0), ("integer", 1.0), ("string", 0.0)):
            file.write_text(json.dumps({"type": kind}))
            cached = Cached(reward=JsonSchema(schema=str(file)), path=str(tmp_path / "scores.sqlite"), version="1")
            assert cached.score(sample).values.tolist() == [score]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (LengthWindow(high=5), LengthWindow(high=6)),
            (Phrases(required=["a"]), Phrases(required=["b"])),
            (Phrases(required=["a"]), Phrases(required=["a"], ignore_case=False)),
        ],
    )
    def test_other_settings(self, one: rm.Provider, other: rm.Provider) -> None:
        assert fingerprint(one) != fingerprint(other)

    def test_a_transform(self) -> None:
        def transformed(transform: rm.Transform | None) -> str:
            reward = LengthWindow(high=5)
            reward.transform = transform
            return fingerprint(reward)

        transforms = [None, Scale(factor=2.0), Scale(factor=3.0), Clip(low=0.0), Chain(transforms=[Scale(factor=2.0)])]
        assert len({transformed(transform) for transform in transforms}) == len(transforms)

    def test_what_is_made_on_the_way_changes_nothing(self) -> None:
        class Connected(LengthWindow):
            connection: object = None

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                self.connection = self.connection or object()
                return super().score_batch(samples)

        reward = Connected(high=5)
        reward.connection = None
        before = fingerprint(reward)
        reward.score([rm.Sample("", "a")])
        assert fingerprint(reward) == before

    def test_using_it_changes_nothing(self) -> None:
        reward = LengthWindow(high=5)
        before = fingerprint(reward)
        reward.score([rm.Sample("", "a")])
        reward.label, reward.where, reward.observer = "another", "there", lambda *arguments: None
        assert fingerprint(reward) == before


def test_the_name_of_a_transform() -> None:
    assert fingerprint(rm.load({**SCORES, "transform": "scale"})) != fingerprint(rm.load({**SCORES, "transform": "tanh"}))


def test_a_tokenizer_that_counts(tiny_decoder: MakeFolder) -> None:
    folder = tiny_decoder()
    spec = {"provider": "length-window", "high": 5, "unit": "tokens", "tokenizer": str(folder)}
    early = rm.load(spec)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    file.write_text(json.dumps(content))
    assert fingerprint(rm.load(spec)) != fingerprint(early)
    assert fingerprint(rm.load({**spec, "tokenizer": str(tiny_decoder())})) == fingerprint(early)  # wherever it lies


def _texts(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [text for item in inner for text in (_texts(item) if isinstance(item, (dict, list)) else [item])]


def test_a_reward_that_refuses_long_samples(tiny_decoder: MakeFolder) -> None:
    """The golden samples contain one of 400 words."""
    spec = {"provider": "sequence-classifier", "model": str(tiny_decoder()), "max_length": 60}
    whole, refusing, cutting = (
        fingerprint(rm.load(spec | choice))
        for choice in ({"max_length": 8_000}, {"truncation": "error"}, {"truncation": "left"})
    )
    assert len({whole, refusing, cutting}) == 3
