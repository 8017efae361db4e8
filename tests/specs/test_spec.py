"""Every form of a spec, and what a wrong one says: where, what is allowed, what is nearest."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import ModelError, SpecError, UnknownNameError
from rm_plugins.identity import fingerprint
from rm_plugins.losses.bradley_terry import BradleyTerry
from rm_plugins.named_rewards import named_rewards
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.spec import component
from rm_plugins.transforms import Clip
from tests.specs.conftest import REGISTRY, SAMPLES, Constant, load, refused


class TestForms:
    def test_a_mapping(self) -> None:
        provider = load({"provider": "certain", "value": 2, "mode": "exact"})
        assert (provider.value, provider.mode, provider.label) == (2, "exact", "certain")
        assert provider.score(SAMPLES).values.tolist() == [2, 2]

    def test_name_is_read_as_label_with_a_warning(self) -> None:
        with pytest.warns(FutureWarning, match="Write `label`"):
            provider = load({"provider": "certain", "name": "four"})
        assert provider.label == "four" and provider.spec == {"provider": "certain", "label": "four"}

    def test_keys_of_several_types_have_a_fingerprint(self) -> None:
        keys, other = (
            load(
                {"provider": "function", "function": lambda samples, table: [0.0] * len(samples), "arguments": {"table": table}}
            )
            for table in ({"x": 1, 2: 3}, {2: 3, "x": 1})
        )
        assert fingerprint(keys) == fingerprint(other)

    def test_settings_win_over_the_spec(self) -> None:
        assert load({"provider": "certain", "value": 2}, value=3.0).value == 3
        assert load("certain", value=4, label="four").label == "four"

    def test_a_registered_name(self) -> None:
        assert isinstance(load("certain"), Constant)

    def test_a_callable(self) -> None:
        provider = load(lambda samples: [5.0] * len(samples), label="five")
        assert isinstance(provider, FunctionProvider)
        assert (provider.label, provider.score(SAMPLES).values.tolist()) == ("five", [5, 5])

    def test_a_provider_stays_as_it_is(self) -> None:
        provider = Constant()
        assert load(provider) is provider
        assert provider.observer is None
        assert "'certain' is already built; value can no longer be set" in refused(provider, value=3)

    def test_a_model_folder(self, tiny_decoder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tiny_decoder()
        expected = rm.load(folder).score(SAMPLES).values
        monkeypatch.chdir(folder.parent)
        for spec in (str(folder), folder.name, f"./{folder.name}", {"provider": "sequence-classifier", "model": folder.name}):
            provider = rm.load(spec, max_length=64)
            assert isinstance(provider, SequenceClassifier)
            assert provider.label == folder.name
            np.testing.assert_array_equal(provider.score(SAMPLES).values, expected)

    def test_the_home_folder(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(here))
        (here / "spec.yaml").write_text("provider: certain\nvalue: 7\n")
        assert load("~/spec.yaml").value == 7

    @pytest.mark.parametrize(("name", "write"), [("a.yaml", str), ("a.yml", str), ("a.json", json.dumps)])
    def test_a_file(self, name: str, write: Callable[[Any], str], here: Path) -> None:
        (here / name).write_text(write({"provider": "certain", "value": 7}))
        for spec in (name, f"./{name}", here / name, str(here / name)):
            assert load(spec).value == 7
            assert load(spec, value=8).value == 8

    def test_a_url_is_a_remote_provider(self) -> None:
        assert "'remote'" in refused("http://127.0.0.1:1/", no_such_key=1)

    def test_an_observer_is_the_registrys(self) -> None:
        assert load("certain").observer == REGISTRY.scored


class TestNesting:
    def test_members_at_every_depth(self) -> None:
        provider = load(
            {
                "provider": "gathering",
                "members": ["certain", {"provider": "gathering", "members": [{"provider": "certain", "value": 4}]}],
                "named": {"a": {"provider": "certain", "value": 2}},
                "judge": "certain",
                "finish": {"name": "clip", "high": 1},
            }
        )
        assert provider.score(SAMPLES).values.tolist() == [5, 5]
        assert (provider.named["a"].value, provider.judge.value, provider.finish.high) == (2, 1, 1)

    def test_members_that_are_made_already_and_functions(self) -> None:
        provider = load({"provider": "gathering", "members": [Constant(value=3), lambda samples: [1] * len(samples)]})
        assert provider.score(SAMPLES).values.tolist() == [4, 4]

    @pytest.mark.parametrize(
        ("member", "message"),
        [
            ({"provider": "certan"}, "members[1].provider: There is no provider called 'certan'. Did you mean 'certain'?"),
            ({"provider": "certain", "valu": 1}, "members[1].valu: unknown key 'valu' for 'certain'. Did you mean 'value'?"),
            ({"value": 1}, "members[1]: the key 'provider' is missing. Allowed values: "),
            ({"provider": "gathering", "members": [3]}, "members[1].members[0]: a spec is text, a path, a mapping, a callable"),
            (
                {"provider": "certain", "on_error": {"fallback": "x"}},
                "members[1].on_error.fallback: 'x' is not a folder or file",
            ),
            ({"provider": "certain", "transform": {"name": "clip", "low": "a"}}, "members[1].transform.low: "),
        ],
    )
    def test_an_error_names_the_path(self, member: Any, message: str) -> None:
        assert message in refused({"provider": "gathering", "members": ["certain", member]})

    def test_an_error_in_a_file_names_the_file(self, here: Path) -> None:
        (here / "inner.yaml").write_text("provider: certain\nvalue: much\n")
        (here / "outer.yaml").write_text("provider: gathering\nmembers: [./inner.yaml]\n")
        assert refused("outer.yaml").startswith(f"{here / 'inner.yaml'}: value: input should be a valid number, not 'much'")


class TestFiles:
    def test_paths_are_relative_to_the_file(self, here: Path, tiny_decoder: Callable[..., Path]) -> None:
        folder = here / "specs"
        folder.mkdir()
        tiny_decoder().rename(folder / "model")
        (folder / "judge.yaml").write_text("provider: certain\n")
        (folder / "spec.yaml").write_text(
            "provider: gathering\nmembers: [./model, judge.yaml, {provider: sequence-classifier, model: model}]\n"
            "file: judge.yaml\nsources: [model, some/hub-id]\n"
        )
        provider = load("specs/spec.yaml")
        assert [type(member) for member in provider.members] == [SequenceClassifier, Constant, SequenceClassifier]
        assert Path(provider.file).resolve() == folder / "judge.yaml"
        assert Path(provider.sources[0]).resolve() == folder / "model"
        assert provider.sources[1] == "some/hub-id"

    def test_a_path_that_does_not_exist_is_named(self, here: Path) -> None:
        (here / "spec.yaml").write_text("provider: gathering\nmembers: []\nsources: [ok, ./absent]\n")
        assert "sources[1]: './absent' does not exist (looked for" in refused("spec.yaml")
        assert "'./absent.yaml' does not exist" in refused("./absent.yaml")
        assert "'absent.yaml' does not exist" in refused("absent.yaml")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- provider: certain\n", "must hold a mapping with text keys"),
            ("certain", "must hold a mapping with text keys"),
            ("", "it holds None"),
            ("1: certain", "must hold a mapping with text keys"),
            ("provider: [", "cannot be read"),
            ("provider: !!python/object/apply:os.getcwd []\n", "cannot be read: could not determine a constructor"),
            ("value: 1\n", "the key 'provider' is missing. If the file names rewards (value), set RM_PLUGINS_SPEC"),
        ],
    )
    def test_a_file_of_something_else_is_refused(self, text: str, message: str, here: Path) -> None:
        (here / "spec.yaml").write_text(text)
        assert message in refused("spec.yaml")
        assert "spec.yaml" in refused("spec.yaml")

    def test_broken_json_is_refused(self, here: Path) -> None:
        (here / "spec.json").write_text("{'provider': 'certain'}")
        assert "spec.json cannot be read" in refused("spec.json")

    def test_a_file_that_contains_itself_is_refused(self, here: Path) -> None:
        (here / "a.yaml").write_text("provider: gathering\nmembers: [b.yaml]\n")
        (here / "b.yaml").write_text("provider: gathering\nmembers: [a.yaml]\n")
        assert "contains itself" in refused("a.yaml")

    def test_a_spec_file_pickles_as_its_provider(self, here: Path) -> None:
        (here / "spec.yaml").write_text("provider: function\nfunction: builtins:len\n")
        provider = rm.load("spec.yaml", on_error="abstain")
        assert pickle.loads(pickle.dumps(provider)).on_error == "abstain"


class TestNamedRewards:
    SOURCE = "helpful: {provider: certain, value: 3}\nalias: helpful\nfile: ./inner.yaml\n"

    @pytest.fixture
    def rewards(self, here: Path) -> Path:
        (here / "inner.yaml").write_text("provider: certain\nvalue: 9\n")
        path = here / "rm_plugins.yaml"
        path.write_text(self.SOURCE)
        return path

    @pytest.mark.usefixtures("rewards")
    def test_the_working_directorys_file_names_rewards(self) -> None:
        assert (load("helpful").value, load("helpful").label) == (3, "helpful")
        assert (load("alias").value, load("alias").label) == (3, "alias")
        assert load("file").value == 9
        assert load("helpful", value=4).value == 4
        assert load({"provider": "gathering", "members": ["helpful"]}).score(SAMPLES).values.tolist() == [3, 3]

    def test_the_variable_names_another_file(self, rewards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        elsewhere = rewards.parent / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        assert named_rewards() == {}
        assert "is not a folder or file, a URL" in refused("helpful")
        monkeypatch.setenv("RM_PLUGINS_SPEC", str(rewards))
        assert list(named_rewards()) == ["helpful", "alias", "file"]
        assert load("file").value == 9  # relative to the file of names

    def test_a_variable_that_names_no_file_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RM_PLUGINS_SPEC", "absent.yaml")
        assert "RM_PLUGINS_SPEC names the file 'absent.yaml', which does not exist (looked for" in refused("helpful")

    @pytest.mark.usefixtures("rewards")
    def test_the_nearest_name_is_offered(self) -> None:
        message = refused("helpfull")
        assert "'helpfull' is not a folder or file, a URL, module:function, a registered provider" in message
        assert "Did you mean 'helpful'?" in message
        assert "Allowed: alias, " in message and ", certain, " in message

    def test_an_error_inside_names_file_and_reward(self, here: Path) -> None:
        (here / "rm_plugins.yaml").write_text("bad: {provider: certain, value: much}\n")
        assert refused("bad").startswith("rm_plugins.yaml: bad.value: input should be a valid number")

    def test_names_that_mean_each_other_are_refused(self, here: Path) -> None:
        (here / "rm_plugins.yaml").write_text("one: two\ntwo: one\n")
        assert "contains itself" in refused("one")


class TestModels:
    def test_an_id_that_cannot_be_loaded_says_what_was_tried(self) -> None:
        message = refused("nobody/no-such-model")
        assert "'nobody/no-such-model' is not a folder here, and as a hub id it cannot be loaded: OSError: " in message

    def test_an_id_in_a_mapping_is_an_error_of_the_same_tree(self) -> None:
        assert "nobody/no-such-model" in refused({"provider": "sequence-classifier", "model": "nobody/no-such-model"})

    def test_a_folder_without_a_model(self, here: Path) -> None:
        (here / "empty").mkdir()
        with pytest.raises(
            ModelError, match=r"empty is not a model folder: it has neither config\.json nor adapter_config\.json"
        ):
            load("empty")


class TestComponent:
    def test_a_loss_by_name_and_by_mapping(self) -> None:
        assert isinstance(component("loss", "bradley_terry"), BradleyTerry)
        assert isinstance(component("loss", {"name": "bradley-terry"}), BradleyTerry)
        loss = BradleyTerry()
        assert component("loss", loss) is loss

    def test_a_transform_with_arguments(self) -> None:
        clip = component("transform", {"name": "clip", "low": -1})
        assert isinstance(clip, Clip)
        assert (clip.low, clip.high) == (-1, None)

    def test_what_is_wrong_is_named(self) -> None:
        with pytest.raises(UnknownNameError, match=r"loss: There is no loss called 'bt'\. .*Allowed: .*bradley-terry"):
            component("loss", "bt")
        with pytest.raises(SpecError, match=r"loss\.beta: unknown key 'beta' for 'bradley-terry'"):
            component("loss", {"name": "bradley-terry", "beta": 1})
        with pytest.raises(SpecError, match="regularizer: must be a name, a mapping with 'name', or an object, not 3"):
            component("regularizer", 3)


@pytest.mark.parametrize(
    "text", ["&t [scale, *t]", "&t {name: chain, transforms: [*t]}", "&t {name: chain, transforms: &u [*u]}"]
)
def test_a_transform_that_contains_itself(text: str, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(f"provider: certain\ntransform: {text}\n")
    with pytest.raises(SpecError, match=r"transform.*: the spec contains itself"):
        load(str(file))


def test_an_error_in_a_chain_names_the_place() -> None:
    assert refused("certain", transform=["scale", "zscore"]).startswith("transform.transforms[1]: zscore needs")
