"""Rules, loaded and refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import SpecError
from rm_plugins.providers.rules.format import Format
from rm_plugins.providers.rules.json_schema import JsonSchema
from rm_plugins.providers.rules.length_window import LengthWindow
from rm_plugins.providers.rules.math_verify import MathVerify
from rm_plugins.providers.rules.phrases import Phrases
from rm_plugins.providers.rules.repetition import Repetition
from rm_plugins.providers.rules.tool_arguments import ToolArguments
from rm_plugins.providers.rules.tool_called import ToolCalled
from rm_plugins.providers.rules.tool_count import ToolCount
from rm_plugins.providers.rules.tool_success import ToolSuccess

RULES: list[type[rm.Provider]] = [
    Format,
    JsonSchema,
    LengthWindow,
    MathVerify,
    Phrases,
    Repetition,
    ToolArguments,
    ToolCalled,
    ToolCount,
    ToolSuccess,
]


@rm.hookimpl
def rm_register_providers() -> list[type[rm.Provider]]:
    built_in = rm.Registry().all("provider")
    return [rule for rule in RULES if rule.name not in built_in]


REGISTRY = rm.Registry([SimpleNamespace(__name__="rules", rm_register_providers=rm_register_providers)])


def load(spec: Any, **settings: Any) -> rm.Provider:
    return rm.load(spec, registry=REGISTRY, **settings)


def values(rule: rm.Provider, *completions: str, **columns: Any) -> list[float]:
    """The score of each completion, which is the same for text and for messages."""
    text = rule.score([rm.Sample("Q", completion, columns) for completion in completions]).values
    prompt = [{"role": "user", "content": "Q"}]
    np.testing.assert_array_equal(rule.score([rm.Sample(prompt, found, columns) for found in completions]).values, text)
    return [float(value) for value in text]


def refused(spec: Mapping[str, Any], error: type[Exception] = SpecError) -> str:
    """What a rule that is the second member of an ensemble says."""
    with pytest.raises(error) as caught:
        load({"provider": "ensemble", "members": [{"provider": "repetition"}, spec]})
    return str(caught.value)
