"""Specs of combinators: what is said of a mistake, and where, and what the documentation shows."""

from __future__ import annotations

import re
from inspect import signature
from pathlib import Path

import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, RmPluginsError, SpecError
from rm_plugins.providers.combinators.cached import Cached
from rm_plugins.providers.combinators.constant import Constant
from rm_plugins.providers.combinators.fallback import Fallback
from rm_plugins.providers.combinators.gate import Gate
from rm_plugins.providers.combinators.product import Product
from rm_plugins.providers.combinators.route import Route
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.providers.combinators.threshold import Threshold
from tests.combinators.conftest import LENGTH, SAMPLES, same

COMBINATORS = (Cached, Constant, Fallback, Gate, Product, Route, Sum, Threshold)


PAGE = (Path(__file__).parents[2] / "docs" / "providers" / "combinators.md").read_text(encoding="utf-8")


def nested(part: str) -> str:
    """A file of six combinators, one inside the other, with `part` in the innermost."""
    return f"""\
provider: sum
members:
  - provider: constant
    value: 1
  - provider: gate
    gate: {{provider: constant, value: 1}}
    reward:
      provider: threshold
      at: 1
      reward:
        provider: fallback
        members:
          - provider: cached
            path: memory
            reward:
              provider: product
              members:
                - {part}
"""


PLACE = "members[1].reward.reward.members[0].reward.members[0]"


class TestMistakesInAFile:
    def test_six_combinators_score(self, here: Path) -> None:
        (here / "spec.yaml").write_text(nested(LENGTH))
        same(rm.load("spec.yaml").score(SAMPLES).values, [1, 2, 2, 2])

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            ("{provider: sum, members: [constant]}", ".members[0].value: 'constant' needs the key 'value', which is missing."),
            ("{provider: sum, members: []}", ".members: a sum needs at least one member."),
            ("{provider: product, members: []}", ".members: a product needs at least one member."),
            ("{provider: fallback, members: []}", ".members: a fallback needs at least one member."),
            (
                "{provider: sum, weights: [1, 2], members: [{provider: constant, value: 1}]}",
                ".weights: there are 2 weights for 1 members; give one per member.",
            ),
            ("{provider: sum, weights: [0], members: [{provider: constant, value: 1}]}", ".weights: all weights are 0"),
            (
                "{provider: sum, weights: [x], members: [{provider: constant, value: 1}]}",
                ".weights[0]: input should be a valid number",
            ),
            (
                "{provider: sum, weights: [.nan], members: [{provider: constant, value: 1}]}",
                ".weights[0]: input should be a finite",
            ),
            (
                "{provider: sum, weigths: [1], members: []}",
                ".weigths: unknown key 'weigths' for 'sum'. Did you mean 'weights'?",
            ),
            ("{provider: constant, value: .inf}", ".value: input should be a finite number, not inf."),
            ("{provider: constant, value: '1'}", ".value: input should be a valid number, not '1'."),
            ("{provider: gate, gate: builtins:len, reward: 3}", ".reward: a spec is text, a path, a mapping"),
            ("{provider: gate, gate: builtins:len, reward: builtins:len, at: high}", ".at: input should be a valid number"),
            ("{provider: threshold, reward: builtins:len}", ".at: 'threshold' needs the key 'at', which is missing."),
            ("{provider: route, column: a, routes: {}}", ".routes: there are none; give each kind"),
            (
                "{provider: route, column: a, routes: {true: builtins:len, 'true': builtins:len}}",
                ".routes: two have the same name",
            ),
            ("{provider: route, routes: {a: builtins:len}}", ": give either `column`, a dataset column, or `by`"),
            ("{provider: route, column: a, by: builtins:len, routes: {a: builtins:len}}", ": give either `column`"),
            ("{provider: route, by: nowhere:at_all, routes: {a: builtins:len}}", ".by: 'nowhere:at_all' cannot be imported"),
            (
                "{provider: route, column: a, routes: {a: {provider: constat}}}",
                ".routes.a.provider: There is no provider called",
            ),
            ("{provider: cached, reward: builtins:len}", ".path: 'cached' needs the key 'path', which is missing."),
            (
                "{provider: cached, reward: builtins:len, path: /dev/null/x.sqlite}",
                ".path: /dev/null/x.sqlite cannot be written: ",
            ),
        ],
    )
    def test_the_place_is_named(self, part: str, message: str, here: Path) -> None:
        (here / "spec.yaml").write_text(nested(part))
        with pytest.raises(RmPluginsError) as caught:
            rm.load("spec.yaml")
        assert str(caught.value).startswith(f"{here / 'spec.yaml'}: {PLACE}{message}")

    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            ("{from: 0, to: x}", ".to: must be a finite number, not 'x'."),
            ("{from: true, to: 1}", ".from: must be a finite number, not True."),
            ("{from: 0}", ".to: a schedule needs the key 'to', which is missing."),
            ("{from: 0, to: 1, begin: 0}", ".begin: unknown key 'begin' for a schedule."),
            ("{from: 0, to: .inf}", ".to: must be a finite number, not inf."),
            ("{from: 0, to: 1, start: 0.5, end: 0.5}", ": a schedule's `start` must lie before its `end`"),
            (
                "{from: 0, to: 1, end: 1.5}",
                ": a schedule's `start` must lie before its `end`, both between 0 (the training begins) and 1",
            ),
        ],
    )
    def test_of_a_schedule_too(self, weight: str, message: str, here: Path) -> None:
        members = "members: [{provider: constant, value: 1}, {provider: constant, value: 1}]"
        (here / "spec.yaml").write_text(nested(f"{{provider: sum, weights: [1, {weight}], {members}}}"))
        with pytest.raises(SpecError) as caught:
            rm.load("spec.yaml")
        assert str(caught.value).startswith(f"{here / 'spec.yaml'}: {PLACE}.weights[1]{message}")

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (
                "{provider: route, column: subject, routes: {math: 'combinator_rules:length'}}",
                ".column: the route 'route' cannot score the batch: 4 of 4 samples (items 0, 1, 2, 3)",
            ),
            (
                "{provider: route, column: topic, routes: {math: 'combinator_rules:length'}}",
                ".column: the route 'route' cannot score the batch: 2 of",
            ),
            (
                "{provider: route, by: combinator_rules:topic, routes: {math: 'combinator_rules:length'}}",
                ".by: the route 'route' cannot score the",
            ),
        ],
    )
    def test_of_a_column_when_it_is_met(self, part: str, message: str, here: Path) -> None:
        (here / "spec.yaml").write_text(nested(part))
        with pytest.raises(DataError) as caught:
            rm.load("spec.yaml").score(SAMPLES)
        assert str(caught.value).startswith(f"{here / 'spec.yaml'}: {PLACE}{message}")
        abstaining = rm.load("spec.yaml", on_error="abstain").score(SAMPLES)
        assert frozenset(abstaining.errors) == caught.value.rows

    def test_of_a_column_at_the_top_of_a_file(self, here: Path) -> None:
        (here / "spec.yaml").write_text("provider: route\ncolumn: subject\nroutes: {math: builtins:len}\n")
        with pytest.raises(DataError, match=rf"^{here / 'spec.yaml'}: column: the route 'route' cannot score the batch: "):
            rm.load("spec.yaml").score([rm.Sample("", "a")])

    def test_an_anchor_inside_itself(self, here: Path) -> None:
        (here / "spec.yaml").write_text(nested("&knot {provider: product, members: [{provider: sum, members: [*knot]}]}"))
        with pytest.raises(SpecError) as caught:
            rm.load("spec.yaml")
        assert str(caught.value).startswith(
            f"{here / 'spec.yaml'}: {PLACE}.members[0].members[0]: the spec contains itself: this part is nested in the same part."
        )

    def test_an_anchor_used_twice_is_none(self, here: Path) -> None:
        (here / "spec.yaml").write_text("provider: sum\nmembers: [&one {provider: constant, value: 2}, *one]\n")
        same(rm.load("spec.yaml").score(SAMPLES).values, [4] * 4)

    def test_files_inside_each_other(self, here: Path) -> None:
        (here / "spec.yaml").write_text(nested("./other.yaml"))
        (here / "other.yaml").write_text("provider: gate\ngate: {provider: constant, value: 1}\nreward: spec.yaml\n")
        with pytest.raises(SpecError) as caught:
            rm.load("spec.yaml")
        assert str(caught.value).startswith(f"{here / 'other.yaml'}: reward: the spec contains itself: {here / 'spec.yaml'} > ")


def test_every_key_is_documented() -> None:
    sections = dict(re.findall(r"^## `([a-z]+)`$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert set(sections) == {cls.name for cls in COMBINATORS}
    for cls in COMBINATORS:
        assert re.findall(r"^\| `(\w+)` \|", sections[cls.name], re.MULTILINE) == list(signature(cls).parameters), cls.name


def test_the_documented_example_is_a_spec(here: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    example = re.sub(r"rules:\w+|\./Qwen2\.5-Reward", "combinator_rules:length", example)
    (here / "spec.yaml").write_text(example)
    same(rm.load("spec.yaml").score(SAMPLES).values, [-10, 1.5, 3, 4.5])


def test_every_gate_of_the_documentation_sets_closed() -> None:
    """The default of 0.0 pays for a closed gate if the reward may be negative."""
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    shown = [
        block for page in pages for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    ]
    gates = [block for block in shown if "provider: gate" in block]
    assert len(gates) >= 3
    assert [block for block in gates if "closed: -" not in block] == []
