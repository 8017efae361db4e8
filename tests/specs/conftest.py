"""Providers that are registered for the tests of specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.component import LocalPath, ModelSource
from rm_plugins.errors import RmPluginsError

SAMPLES = [rm.Sample("", "a"), rm.Sample("", "bb")]


class Constant(rm.Provider):
    """Gives one number."""

    name: ClassVar[str] = "certain"

    def __init__(self, *, value: float = 1.0, mode: Literal["fast", "exact"] = "fast", weights: Sequence[float] = ()) -> None:
        if value > 1_000:
            raise ValueError("that is too much")
        self.value, self.mode, self.weights = value, mode, weights

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        return rm.Scores(np.full(len(samples), self.value))


class Gathering(rm.Provider):
    """Takes everything that a spec can nest."""

    name: ClassVar[str] = "gathering"

    def __init__(
        self,
        *,
        members: Sequence[rm.Provider],
        named: Mapping[str, rm.Provider] | None = None,
        judge: rm.Provider | None = None,
        finish: rm.Transform | None = None,
        file: Annotated[str, LocalPath] | None = None,
        sources: Sequence[ModelSource] = (),
        limit: int | str | Mapping[str, float] | None = None,
    ) -> None:
        self.members, self.named, self.judge, self.finish = members, named, judge, finish
        self.file, self.sources, self.limit = file, sources, limit

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        return rm.Scores(np.sum([member.score(samples).values for member in self.members], axis=0))


class Open(Constant):
    """Takes whatever it is given."""

    name: ClassVar[str] = "open"

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.more = more


@rm.hookimpl
def rm_register_providers() -> list[type[rm.Provider]]:
    return [Constant, Gathering, Open]


REGISTRY = rm.Registry([SimpleNamespace(__name__="tests", rm_register_providers=rm_register_providers)])


def load(spec: Any, **settings: Any) -> Any:
    return rm.load(spec, registry=REGISTRY, **settings)


def refused(spec: Any, **settings: Any) -> str:
    with pytest.raises(RmPluginsError) as caught:
        load(spec, **settings)
    return str(caught.value)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RM_PLUGINS_SPEC", raising=False)
    return tmp_path
