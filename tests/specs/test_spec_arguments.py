"""The keys of a spec: the shared ones, and those of a constructor."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import BrokenPluginError, PluginError, SpecError
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.registry import BrokenPlugin
from rm_plugins.transforms import Scale
from tests.specs.conftest import SAMPLES, Constant, load, refused


class TestSharedKeys:
    def test_a_transform_by_name_by_mapping_and_as_an_object(self) -> None:
        assert load("certain", transform="scale").transform.factor == 1
        assert load("certain", transform={"name": "scale", "factor": 2}).score(SAMPLES).values.tolist() == [2, 2]
        scale = Scale(factor=3.0)
        assert load("certain", transform=scale).transform is scale
        assert load("certain", transform=None).transform is None

    @pytest.mark.parametrize(
        ("transform", "message"),
        [
            ("clp", "transform: There is no transform called 'clp'. Did you mean 'clip'?"),
            ({"low": 1}, "transform: the key 'name' is missing. Allowed values: "),
            ({"name": "clip", "lo": 1}, "transform.lo: unknown key 'lo' for 'clip'. Did you mean 'low'?"),
            ({"name": "scale", "factor": "2"}, "transform.factor: input should be a valid number, not '2'."),
            ({"name": 3}, "transform.name: must be the name of a transform, not 3."),
            (3, "transform: must be a name, a mapping with 'name', or an object, not 3."),
            ({"name": "clip"}, "clip needs `low`, `high`, or both."),
            ("zscore", "zscore needs `mean` and `std`: 'certain' has no manifest"),
        ],
    )
    def test_a_wrong_transform(self, transform: Any, message: str) -> None:
        assert message in refused("certain", transform=transform)

    def test_on_error(self) -> None:
        assert load("certain").on_error == "raise"
        assert load("certain", on_error="abstain").on_error == "abstain"
        provider = load("certain", on_error={"fallback": {"provider": "certain", "value": 0, "on_error": "abstain"}})
        assert (provider.on_error, provider.fallback.value, provider.fallback.on_error) == ("raise", 0, "abstain")

    @pytest.mark.parametrize("policy", ["ignore", None, True, {"fallback": "certain", "retries": 3}, {"fall_back": "certain"}])
    def test_a_wrong_on_error(self, policy: Any) -> None:
        assert f"on_error: must be 'raise', 'abstain' or {{fallback: SPEC}}, not {policy!r}." in refused(
            "certain", on_error=policy
        )

    def test_the_label_is_text(self) -> None:
        assert "label: must be text, not 3." in refused("certain", label=3)


class TestArguments:
    def test_every_wrong_key_is_reported_at_once(self) -> None:
        message = refused({"provider": "certain", "valeu": 1, "mode": "slow", "weights": [1, "x"]})
        assert (
            "valeu: unknown key 'valeu' for 'certain'. Did you mean 'value'? Allowed: label, mode, on_error, provider"
            in message
        )
        assert "mode: input should be 'fast' or 'exact', not 'slow'." in message
        assert "weights[1]: input should be a valid number, not 'x'." in message
        assert len(message.splitlines()) == 3

    def test_a_missing_key_is_named(self) -> None:
        assert "members: 'gathering' needs the key 'members', which is missing." in refused("gathering")

    def test_a_union_says_all_that_it_takes(self) -> None:
        message = refused({"provider": "gathering", "members": [], "limit": [1]})
        assert message.startswith("limit: ")
        assert message.count(" Or: ") == 2
        assert {"integer", "string"} <= set(re.findall(r"\w+", message))

    def test_numbers_are_not_read_out_of_text_nor_text_out_of_numbers(self) -> None:
        assert "value: input should be a valid number, not '1'." in refused("certain", value="1")
        assert "value: input should be a valid number, not True." in refused("certain", value=True)
        assert "function" in refused({"provider": "function", "function": 3})

    def test_what_a_constructor_refuses_is_translated(self) -> None:
        assert "'certain' could not be made: ValueError: that is too much" in refused("certain", value=2000)
        assert "members[0]: 'certain' could not be made" in refused(
            {"provider": "gathering", "members": [{"provider": "certain", "value": 2000}]}
        )

    def test_a_provider_may_take_anything(self) -> None:
        assert load({"provider": "open", "this": 1, "that": [2]}).more == {"this": 1, "that": [2]}

    def test_a_constructor_may_be_inherited_from_another_module(self) -> None:
        class Mine(SequenceClassifier):
            name = "mine"

        registry = rm.Registry([SimpleNamespace(__name__="x", rm_register_providers=rm.hookimpl(lambda: [Mine]))])
        with pytest.raises(SpecError, match=r"modle: unknown key 'modle' for 'mine'\. Did you mean 'model'\?"):
            rm.load({"provider": "mine", "model": "x", "modle": "y"}, registry=registry)

    def test_annotations_must_be_there_at_run_time(self) -> None:
        class Hinted(Constant):
            name = "hinted"

            def __init__(self, *, value: "OnlyForTypeCheckers") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
                pass

        registry = rm.Registry([SimpleNamespace(__name__="x", rm_register_providers=rm.hookimpl(lambda: [Hinted]))])
        with pytest.raises(PluginError, match=r"Hinted cannot be built from a spec: .* name 'OnlyForTypeCheckers'"):
            rm.load({"provider": "hinted", "value": 1}, registry=registry)

    @pytest.mark.parametrize("spec", [3, None, ["certain"], 1.5])
    def test_a_spec_of_another_type(self, spec: Any) -> None:
        assert f"a spec is text, a path, a mapping, a callable or a provider, not {type(spec).__name__}." in refused(spec)

    def test_the_provider_is_a_name(self) -> None:
        assert "provider: must be the name of a provider, not 3." in refused({"provider": 3})
        message = refused({"provider": "nobody"})
        assert "provider: There is no provider called 'nobody'." in message
        assert "Allowed: cached, certain, " in message

    def test_a_broken_plugin_is_the_cause_of_an_unknown_name(self) -> None:
        registry = rm.Registry()
        registry.broken.append(BrokenPlugin("theirs", "their-rewards 1.0 (theirs)", RuntimeError("no disk")))
        with pytest.raises(
            BrokenPluginError, match=r"provider: There is no provider called 'x'.*RuntimeError: no disk"
        ) as caught:
            rm.load({"provider": "x"}, registry=registry)
        assert isinstance(caught.value.__cause__, RuntimeError)


def test_headers_of_a_wrong_type_are_not_quoted() -> None:
    with pytest.raises(SpecError, match="headers") as caught:
        rm.load({"provider": "remote", "url": "http://127.0.0.1:9", "headers": "Bearer a-secret-token"})
    assert "a-secret" not in str(caught.value)
