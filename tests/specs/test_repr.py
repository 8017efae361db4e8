"""A provider shows itself as one readable line."""

from __future__ import annotations

from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.providers.combinators.ensemble import Ensemble

ONE: dict[str, Any] = {"provider": "constant", "value": 1.0}


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        (ONE, "Constant('constant', value=1.0)"),
        ({**ONE, "label": "one", "on_error": "abstain"}, "Constant('one', value=1.0, on_error='abstain')"),
        (
            {"provider": "ensemble", "members": [ONE] * 3, "aggregate": {"name": "lcb", "k": 1.0}, "common_scale": True},
            "Ensemble('ensemble', members=3, aggregate='lcb', common_scale=True)",
        ),
        ({"provider": "gate", "gate": ONE, "reward": {**ONE, "label": "one"}}, "Gate('gate', gate='constant', reward='one')"),
        (
            {"provider": "route", "column": "topic", "routes": {"a": ONE, "b": ONE}, "otherwise": ONE},
            "Route('route', routes=2, otherwise='constant', column='topic')",
        ),
        (
            {**ONE, "on_error": {"fallback": ONE}, "transform": "tanh"},
            "Constant('constant', value=1.0, transform='tanh', fallback='constant')",
        ),
        ({"provider": "format", "pattern": "(?s).+"}, "Format('format', pattern='(?s).+')"),
        ({"provider": "phrases", "required": ["x" * 200]}, f"Phrases('phrases', required=['{'x' * 58}...)"),
        (
            {"provider": "remote", "url": "http://127.0.0.1:9", "protocol": "vllm", "headers": {"X-Team": "blue"}},
            "Remote('127.0.0.1:9', url='http://127.0.0.1:9', protocol='vllm', headers=<hidden>)",
        ),
    ],
)
def test_what_is_shown(spec: Any, shown: str) -> None:
    assert repr(rm.load(spec)) == str(rm.load(spec)) == shown


def test_a_function_is_shown_by_its_name() -> None:
    def short(samples: list[rm.Sample]) -> list[float]:
        return [0.0 for _ in samples]

    assert repr(rm.load(short)).startswith("FunctionProvider('short', function='<test_a_function_is_shown")


def test_a_model_is_shown_with_its_device_and_dtype(tiny_decoder: Any) -> None:
    folder = str(tiny_decoder())
    shown = repr(rm.load(folder))
    assert shown.startswith("SequenceClassifier(")
    assert shown.endswith(", device=cpu, dtype=float32)")


def test_one_that_is_made_in_python_or_half_made_is_shown_too() -> None:
    assert repr(Ensemble(members=[rm.load(ONE)] * 2)) == "Ensemble('ensemble', members=2)"
    assert repr(Ensemble.__new__(Ensemble)) == "Ensemble('ensemble')"
    with pytest.raises(SpecError):
        Ensemble(members=[])
