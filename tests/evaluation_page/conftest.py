"""Pages of evaluations, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rm_plugins.evaluation.results import Evaluation, RewardResult
from rm_plugins.reports import comparison_page, evaluation_page
from rm_plugins.statistics.intervals import Estimate
from tests.evaluation_samples import evaluation_of

pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is not installed")
if TYPE_CHECKING:
    pass


ATTACK = "<script>alert('x')</script>"


HOSTILE = (f'{ATTACK}"><img src=x onerror=alert(1)>', "half \ud800 a pair", "$x^2_$ \u202eright to left \x00\x1b", "w" * 10_000)


VOID = ("meta", "br", "path", "use", "wbr")


NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+−-]?\d+)?%?")


OF_ONE = (
    *("figures", "sections", "by_length", "length", "distribution", "calibration", "best_of_n", "formats", "members"),
    *("mistakes", "evaluated", "suite"),
)


OF_SEVERAL = (*OF_ONE, "comparisons", "comparisons_by_section")


class Reader(HTMLParser):
    """What a page has: elements, ids, what refers to them, headings, and the text that someone reads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.levels: list[int] = []
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, dict[str, str]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes.append((tag, found))
        self.ids += [found["id"]] if "id" in found else []
        self.references += [found[name] for name in ("href", "src", "xlink:href") if name in found]
        self.references += [f"#{name}" for value in found.values() for name in re.findall(r"url\(#([^)]*)\)", value)]
        self.levels += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((" ".join(f"{tag}.{kind}" for tag, kind in self.open), data))

    def text(self, *, without: Iterable[str] = ("style",)) -> str:
        return " ".join(
            data for where, data in self.texts if not any(name in where.replace(".", " ").split() for name in without)
        )


@pytest.fixture(scope="module")
def three() -> Evaluation:
    return evaluation_of()


@pytest.fixture(scope="module")
def page(three: Evaluation) -> str:
    return evaluation_page(three)


@pytest.fixture(scope="module")
def two() -> Evaluation:
    return evaluation_of(("chars", "helpful-7b"))


@pytest.fixture(scope="module")
def comparison(two: Evaluation) -> str:
    return comparison_page(two)


@pytest.fixture(scope="module")
def small() -> Evaluation:
    """One reward and few numbers, so that a number that is not among them is found."""
    found = evaluation_of(("ensemble",), sections=("chat",), suite="")
    reward = found.rewards[0]
    return replace(found, rewards=(replace(reward, calibration=reward.calibration[:2], by_length=reward.by_length[:2]),))


@pytest.fixture(scope="module")
def hostile(three: Evaluation) -> Evaluation:
    """Names, sections and texts that nobody would choose who means well."""

    def spoilt(reward: RewardResult, name: str) -> RewardResult:
        pair = replace(reward.mistakes[0], prompt=name, chosen=name, rejected=name, section=name)
        finding = replace(reward.findings[0], text=name)
        sections = tuple(replace(section, name=f"{HOSTILE[n % 4]}{n}") for n, section in enumerate(reward.sections))
        figures = {**reward.figures, f"spearman/{name}": Estimate(0.25, 0.2, 0.3), f"{name}/{name}": Estimate(1.0, 0.5, 2.0)}
        texts: dict[str, Any] = {"source": name, "rendering": name, "fingerprint": name, "spec": {name: name}}
        members = None if reward.members is None else replace(reward.members, names=HOSTILE[:3])
        return replace(
            reward,
            name=name,
            mistakes=(pair,),
            findings=(finding,),
            sections=sections,
            figures=figures,
            members=members,
            **texts,
        )

    rewards = tuple(spoilt(reward, name) for reward, name in zip((*three.rewards, three.rewards[0]), HOSTILE, strict=True))
    data = replace(three.data, source=HOSTILE[0], split=HOSTILE[1], suite=HOSTILE[2], sections={}, attributes=HOSTILE)
    differences = tuple(
        replace(three.differences[0], a=HOSTILE[0], b=name, sections={ATTACK: Estimate(0, -1, 1)}) for name in HOSTILE[1:]
    )
    return replace(three, rewards=rewards, data=data, differences=differences)


def bare(reward: RewardResult) -> RewardResult:
    """A reward of which hardly anything is known."""
    return RewardResult(reward.name, reward.source, None, reward.fingerprint, "", {}, 0, 0, 0, {})


@pytest.fixture(scope="module")
def hostile_page(hostile: Evaluation) -> str:
    return evaluation_page(hostile)


def unknown(shown: Iterable[str], evaluation: Evaluation) -> list[str]:
    """The numbers that stand for none of the JSON's, with as many digits as are shown, and are in none of its texts."""
    found = evaluation.as_json()
    for reward in found["rewards"]:
        for charted in ("distribution", "length_scatter", "spec", "manifest"):
            reward.pop(charted)
    leaves = list(walked(found))
    texts = {number for leaf in leaves if isinstance(leaf, str) for number in NUMBER.findall(leaf)}
    values = np.array([leaf for leaf in leaves if isinstance(leaf, (int, float))])

    def is_known(number: str) -> bool:
        plain = number.replace(",", "").replace("−", "-").removesuffix("%")
        mantissa, _, power = plain.partition("e")
        half = 0.5 * 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2])) * (1 + 1e-9)
        scales = (100,) if number.endswith("%") else (1, 100)
        return any(bool((np.abs(scale * values - float(plain)) <= half).any()) for scale in scales)

    return [number for number in shown if number not in texts and not is_known(number)]


def walked(value: Any) -> Iterator[Any]:
    """The keys and the leaves of JSON."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from walked(item)
    elif isinstance(value, list):
        for item in value:
            yield from walked(item)
    elif value is not None:
        yield value
