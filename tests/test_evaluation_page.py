"""The pages of evaluations: that they are whole, safe and true to the data, and what a person sees of them in a browser."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rm_plugins.errors import DataError, MissingDependencyError
from rm_plugins.evaluation import findings
from rm_plugins.evaluation.figures import FIGURES
from rm_plugins.evaluation.results import Difference, Evaluation, RewardResult
from rm_plugins.reports import comparison_page, evaluation_page
from rm_plugins.reports.evaluation_page import CHARTS
from rm_plugins.statistics.intervals import Estimate
from tests.evaluation_samples import evaluation_of

pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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


class TestTheWholePage:
    def test_it_is_whole_and_needs_nothing(self, page: str) -> None:
        found = Reader(page)
        assert found.open == []
        assert not {"script", "link", "img", "iframe"} & set(found.tags)
        assert all(reference.startswith("#") for reference in found.references)
        assert "http" not in page.replace("http-equiv", "") and "@import" not in page
        assert set(re.findall(r"url\((.)", page)) <= {"#"}
        assert 'name="viewport"' in page and "color-scheme: light dark" in page and "currentColor" in page

    def test_every_id_is_its_own_and_every_reference_meets_one(self, page: str) -> None:
        found = Reader(page)
        assert len(found.ids) == len(set(found.ids)) > 50
        assert {reference[1:] for reference in found.references} <= set(found.ids)

    def test_headings_are_in_order_and_tables_say_what_their_cells_are_of(self, page: str) -> None:
        found = Reader(page)
        assert found.levels[0] == 1 and found.levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(found.levels, found.levels[1:], strict=False))
        assert {given.get("scope") for tag, given in found.attributes if tag == "th"} == {"row", "col"}
        assert all(given.get("aria-label") for tag, given in found.attributes if tag == "svg" or given.get("role") == "region")

    def test_each_part_has_its_section_and_how_it_is_read(self, page: str, comparison: str) -> None:
        found = Reader(page)
        shown = found.text()
        for name in OF_SEVERAL:
            assert name in found.ids and CHARTS[name] in shown, name
        assert CHARTS["summary"] in shown
        assert found.tags.count("svg") == 3 * 3 + 5, "three kinds of charts for each reward, five for all"
        compared = Reader(comparison)
        assert {"comparisons", "comparisons_by_section", "won", "lost", "sections", "by_length", "evaluated"} <= set(
            compared.ids
        )
        assert set(CHARTS) == {*OF_SEVERAL, "summary", "won", "lost"}

    def test_it_is_small_and_always_the_same(self, page: str, three: Evaluation) -> None:
        assert len(page.encode()) < 700_000
        assert evaluation_page(three) == page

    def test_the_title(self, small: Evaluation, page: str) -> None:
        assert "<h1>Rewards on RewardBench</h1>" in page
        assert "<h1>Before &amp; after</h1>" in evaluation_page(
            replace(small, rewards=(bare(small.rewards[0]),)), "Before & after"
        )

    @pytest.mark.parametrize(
        ("source", "split", "title", "first"),
        [
            ("", "", "Rewards", "1,200 rows · "),
            ("", "test", "Rewards", "split test · 1,200 rows · "),
            ("data/a.jsonl", "", "Rewards on a.jsonl", "data/a.jsonl · 1,200 rows · "),
            ("trl-lib/tldr", "test", "Rewards on trl-lib/tldr", "trl-lib/tldr, split test · 1,200 rows · "),
        ],
    )
    def test_what_has_no_name_has_no_empty_place(
        self, small: Evaluation, source: str, split: str, title: str, first: str
    ) -> None:
        light = replace(small, rewards=(bare(small.rewards[0]),), data=replace(small.data, source=source, split=split))
        shown = evaluation_page(light)
        assert f"<h1>{title}</h1>" in shown
        line = shown.partition('<p class="evaluated">')[2].partition("</p>")[0]
        assert re.sub("<[^>]*>", "", line).startswith(first)

    def test_long_texts_of_many_rewards_leave_the_page_small(self, small: Evaluation) -> None:
        long = tuple(
            replace(small.rewards[0].mistakes[0], row=row, prompt="p" * 500, chosen="ä" * 3_000, rejected="<" * 3_000)
            for row in range(1, 21)
        )
        rewards = tuple(replace(small.rewards[0], name=f"reward {number}", mistakes=long) for number in range(10))
        shown = evaluation_page(replace(small, rewards=rewards))
        assert len(shown.encode()) < 2_000_000
        kept = shown.count("<b>Row ")
        assert kept % 10 == 0 and kept >= 10
        assert shown.count(f"{20 - kept // 10} more are in the JSON of the evaluation.") == 10
        assert shown.count("<b>Row 1</b>") == 10, "the worst are kept"
        alone = evaluation_page(replace(small, rewards=rewards[:1]))
        assert alone.count("<b>Row ") == 20 and "more are in the JSON" not in alone
        huge = tuple(replace(pair, prompt="x" * 900_000) for pair in long)
        shown = evaluation_page(replace(small, rewards=(replace(small.rewards[0], mistakes=huge),)))
        assert shown.count("<b>Row ") == 1 and "19 more are in the JSON" in shown


class TestAbsence:
    @pytest.mark.parametrize(
        ("part", "nothing", "sections"),
        [
            ("sections", (), ["sections"]),
            ("by_length", (), ["by_length"]),
            ("distribution", None, ["distribution"]),
            ("calibration", (), ["calibration"]),
            ("length_scatter", None, ["length"]),
            ("formats", (), ["formats"]),
            ("members", None, ["members"]),
            ("best_of_n", None, ["best_of_n"]),
            ("mistakes", (), ["mistakes"]),
            ("suite", None, ["suite"]),
        ],
    )
    def test_what_there_is_not_is_left_out(self, small: Evaluation, part: str, nothing: Any, sections: list[str]) -> None:
        reward = replace(small.rewards[0], **{part: nothing})
        ids = Reader(evaluation_page(replace(small, rewards=(reward,)))).ids
        assert set(OF_ONE) - set(ids) == {*sections, "suite"}

    def test_next_to_nothing(self, three: Evaluation) -> None:
        data = replace(three.data, pairs=0, longer_chosen=math.nan, sections={}, suite="", split="", formats={})
        found = Reader(evaluation_page(replace(three, rewards=tuple(map(bare, three.rewards)), differences=(), data=data)))
        assert set(found.ids) & {*OF_SEVERAL} == {"evaluated"}
        assert found.text().count("Nothing stands out.") == 3
        assert "svg" not in found.tags

    def test_what_could_not_be_computed_is_a_dash(self, two: Evaluation) -> None:
        unknown = Estimate(math.nan, math.nan, math.nan)
        reward = two.rewards[1]
        reward = replace(
            reward,
            figures={name: unknown for name in reward.figures},
            sections=tuple(replace(section, accuracy=unknown, longer_chosen=math.nan) for section in reward.sections),
            by_length=tuple(replace(part, low=-math.inf, accuracy=unknown) for part in reward.by_length),
            formats=tuple(replace(bias, preferred=math.nan, chosen=math.nan, correlation=math.nan) for bias in reward.formats),
        )
        difference = replace(two.differences[0], accuracy=unknown, p_value=math.nan)
        text = Reader(evaluation_page(replace(two, rewards=(two.rewards[0], reward), differences=(difference,)))).text()
        assert text.count("–") > 20
        assert not re.search(r"\b(nan|inf|None)\b", text)
        assert "unclear" in text

    def test_a_comparison_is_of_two(self, three: Evaluation, two: Evaluation) -> None:
        with pytest.raises(DataError, match="3 rewards and 2 differences"):
            comparison_page(three)
        with pytest.raises(DataError, match="2 rewards and 0 differences"):
            comparison_page(replace(two, differences=()))

    def test_without_matplotlib(self, small: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
        blocked: Any = None
        monkeypatch.setitem(sys.modules, "matplotlib", blocked)
        with pytest.raises(MissingDependencyError, match=r"pip install 'rm-plugins\[report\]'"):
            evaluation_page(small)


class TestVerdicts:
    def test_the_worst_comes_first_in_words(self, page: str, three: Evaluation) -> None:
        calm_first = replace(three, rewards=three.rewards[::-1])
        for shown in (page, evaluation_page(calm_first)):
            severities = re.findall(r'<b class="badge">(\w+)</b>', shown)
            assert severities == ["alarm", "warning", "note", "warning", "note"], "those of one reward stand together"
        text = Reader(page).text()
        for reward in three.rewards:
            for finding in reward.findings:
                assert finding.lead in text and finding.text[1:] in text, finding.kind

    def test_the_longer_answer_stands_beside_the_rewards(self, page: str, three: Evaluation) -> None:
        summary = page.partition('class="table summary"')[2].partition("</table>")[0]
        cells = re.findall(r"<tr><th scope=\"row\">.*?</th><td><b>([\d.]+%)</b>", summary)
        accuracies = [reward.figures["accuracy"].value for reward in three.rewards]
        assert cells == [f"{100 * share:.1f}%" for share in (*accuracies, three.data.longer_chosen)]
        assert cells[0] == cells[-1], "the reward that is the length"

    @pytest.mark.parametrize(
        ("found", "best"),
        [
            ([(0.08, 0.05, 0.11, 0.001)], "helpful-7b"),
            ([(-0.08, -0.11, -0.05, 0.001)], "chars"),
            ([(0.08, -0.01, 0.17, 0.09)], None),
            ([(0.08, 0.05, 0.11, 0.001), (0.15, 0.12, 0.18, 0.001)], "ensemble-of-3"),
            ([(0.08, 0.05, 0.11, 0.001), (0.09, 0.06, 0.12, 0.001)], None),
            ([(-0.08, -0.11, -0.05, 0.001), (-0.01, -0.04, 0.02, 0.5)], None),
            ([(math.nan, math.nan, math.nan, math.nan)], None),
        ],
    )
    def test_the_best_is_marked_where_the_comparisons_show_it(
        self, three: Evaluation, found: list[tuple[float, float, float, float]], best: str | None
    ) -> None:
        names = [reward.name for reward in three.rewards[: len(found) + 1]]
        differences = tuple(
            Difference("chars", name, 1_200, Estimate(value, low, high), p, 9, 9)
            for name, (value, low, high, p) in zip(names[1:], found, strict=True)
        )
        rewards = tuple(replace(bare(reward), figures=reward.figures) for reward in three.rewards[: len(found) + 1])
        shown = evaluation_page(replace(three, rewards=rewards, differences=differences))
        rows = re.findall(r'<tr><th scope="row">.*?<bdi>([^<]*)</bdi>.*?</tr>', shown)
        marked = [row for row in re.findall(r'<tr><th scope="row">.*?</tr>', shown) if 'class="best"' in row]
        assert [re.findall("<bdi>(.*?)</bdi>", row)[0] for row in marked] == ([] if best is None else [best])
        assert rows[: len(names)] == names

    def test_a_comparison_says_who_is_better(self, two: Evaluation) -> None:
        def headline(value: float, p: float) -> str:
            found = replace(two.differences[0], accuracy=Estimate(value, value - 0.02, value + 0.02), p_value=p)
            shown = comparison_page(replace(two, differences=(found,)))
            return re.sub("<[^>]*>|●|■", "", shown.partition('class="headline">')[2].partition("</p>")[0])

        assert headline(0.04, 0.0002) == "helpful-7b is better than chars+4.0 points of accuracy [+2.0, +6.0], p = 0.00020"
        assert headline(-0.04, 0.0002).startswith("chars is better than helpful-7b−4.0 points")
        assert headline(0.01, 0.3).startswith("No clear difference between chars and helpful-7b+1.0 points")


class TestNumbers:
    """Every number that is shown is in the JSON."""

    def test_every_number_of_the_pages_is_in_the_json(
        self, three: Evaluation, two: Evaluation, small: Evaluation, page: str, comparison: str
    ) -> None:
        shown = {"three": (three, page), "two": (two, comparison), "small": (small, evaluation_page(small))}
        for name, (evaluation, text) in shown.items():
            numbers = NUMBER.findall(read(text))
            assert len(numbers) > 100, name
            assert unknown(numbers, evaluation) == [], name

    def test_one_that_is_not_would_be_found(self, small: Evaluation) -> None:
        accuracy = small.rewards[0].figures["accuracy"].value
        others = [f"{100 * accuracy + 0.1:.1f}%", "1,201", "0.8713", "−0.0713"]
        assert unknown([f"{100 * accuracy:.1f}%", "1,200", *others], small) == others


def read(page: str) -> str:
    """The text with results in it: without charts, samples, specs and what says how they are read."""
    return Reader(page).text(without=("style", "svg", "pre", "how", "meaning"))


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


class TestHostileTexts:
    def test_nothing_is_read_as_markup(self, hostile: Evaluation, hostile_page: str, two: Evaluation) -> None:
        pairs = tuple(replace(found, pair=hostile.rewards[0].mistakes[0]) for found in two.differences[0].won)
        difference = replace(hostile.differences[0], won=pairs, lost=pairs)
        compared = replace(hostile, rewards=hostile.rewards[:2], differences=(difference,))
        for shown in (hostile_page, comparison_page(compared)):
            found = Reader(shown)
            assert found.open == [] and not {"script", "img"} & set(found.tags)
            assert not any(name.startswith("on") for _, given in found.attributes for name in given)
            assert ATTACK in found.text() and "half \\ud800 a pair" in found.text()
            assert len(found.ids) == len(set(found.ids))
            assert not set("\x00\x1b") & set(shown)
            shown.encode()
        assert any("svg" in where and data.strip().startswith("$x^2_$") for where, data in Reader(hostile_page).texts)

    def test_more_rewards_than_colours_and_many_sections(self) -> None:
        names = [f"reward-{number}" for number in range(9)]
        evaluation = evaluation_of(names, sections=[f"section {number}" for number in range(40)])
        light = tuple(replace(bare(reward), sections=reward.sections, figures=reward.figures) for reward in evaluation.rewards)
        found = Reader(evaluation_page(replace(evaluation, rewards=light)))
        assert found.tags.count("svg") == 2
        assert all(found.text().count(f"section {number} ") for number in range(40))


@pytest.fixture(scope="module")
def files(
    page: str, comparison: str, small: Evaluation, hostile_page: str, tmp_path_factory: pytest.TempPathFactory
) -> MappingProxyType[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    pages = {"three": page, "two": comparison, "one": evaluation_page(small), "hostile": hostile_page}
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return MappingProxyType({name: folder / f"{name}.html" for name in pages})


@pytest.fixture
def look(browser: Browser, files: MappingProxyType[str, Path]) -> Iterator[Callable[..., Page]]:
    """Opens a page; afterwards it must have asked for nothing but itself, and the console must be empty."""
    seen: list[tuple[Page, list[str], list[str]]] = []

    def opened(name: str, width: int = 1280, scheme: str = "light") -> Page:
        height = 800 if width > 500 else 740
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
        found = context.new_page()
        requests: list[str] = []
        said: list[str] = []
        seen.append((found, requests, said))
        found.on("request", lambda request: requests.append(request.url))
        found.on("console", lambda message: said.append(message.text))
        found.on("pageerror", lambda error: said.append(str(error)))
        found.goto(files[name].as_uri())
        assert requests == [files[name].as_uri()]
        return found

    yield opened
    for found, requests, said in seen:
        found.context.close()
        assert (len(requests), said) == (1, [])


TEXTS = """() => [...document.querySelectorAll('svg')].flatMap((chart) => {
    const boxes = [...chart.querySelectorAll('text')].map((found) => [found.textContent, found.getBoundingClientRect()]);
    const outer = chart.getBoundingClientRect();
    const bad = boxes.filter(([, box]) => box.left < outer.left - 2 || box.right > outer.right + 8).map(([text]) => [text, 'outside']);
    boxes.forEach(([text, one], at) => boxes.slice(at + 1).forEach(([other, two]) => {
        const wide = Math.min(one.right, two.right) - Math.max(one.left, two.left);
        const high = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
        if (wide > 0.5 && high > 3) bad.push([text, other]);
    }));
    return bad;
})"""
CHARTS_SEEN = """() => [...document.querySelectorAll('svg')].map((chart) => {
    const box = chart.getBoundingClientRect();
    return {left: box.left, right: box.right, height: box.height, scale: box.width / chart.viewBox.baseVal.width};
})"""
CONTRASTS = """() => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 1;
    const paint = canvas.getContext('2d', {willReadFrequently: true});
    const parse = (colour) => {
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data];
    };
    const known = new Map();
    const light = (colour) => {
        if (!known.has(colour)) {
            const [x, y, z] = parse(colour).slice(0, 3).map((part) => part / 255)
                .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            known.set(colour, 0.2126 * x + 0.7152 * y + 0.0722 * z);
        }
        return known.get(colour);
    };
    const ground = (found) => {
        for (let at = found; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (colour !== 'rgba(0, 0, 0, 0)') return colour;
        }
    };
    const own = (found) => [...found.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    return [...document.body.querySelectorAll('*')].filter((found) => own(found) && found.getClientRects().length).map((found) => {
        const style = getComputedStyle(found);
        const colour = found instanceof SVGElement ? style.fill : style.color;
        const [one, two] = [light(colour), light(ground(found))].sort((x, y) => y - x);
        const contrast = (one + 0.05) / (two + 0.05);
        return {text: found.textContent.slice(0, 40), contrast, least: found.classList.contains('mark') ? 3 : 4.5};
    });
}"""


class TestInTheBrowser:
    @pytest.mark.parametrize("width", [1280, 360])
    @pytest.mark.parametrize("name", ["three", "two", "one", "hostile"])
    def test_nothing_is_wider_than_the_window_and_every_chart_can_be_read(
        self, look: Callable[..., Page], name: str, width: int
    ) -> None:
        page = look(name, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        charts = page.evaluate(CHARTS_SEEN)
        assert len(charts) > 2
        for chart in charts:
            assert chart["left"] >= 0 and chart["right"] <= width and chart["height"] > 50
            assert 9.5 <= 10 * chart["scale"] <= 16, "pixels of the text in a chart"
        assert page.evaluate(TEXTS) == []

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_texts_stand_out_from_what_they_stand_on(self, look: Callable[..., Page], scheme: str) -> None:
        page = look("three", 1280, scheme)
        page.evaluate("for (const found of document.querySelectorAll('details')) found.open = true")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 500
        assert [item for item in found if item["contrast"] < item["least"]] == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 19, 22)"
        assert dark == (scheme == "dark")

    def test_cells_of_members_have_the_colour_of_their_agreement(self, look: Callable[..., Page]) -> None:
        colour = "(cells) => cells.map((cell) => [cell.textContent, getComputedStyle(cell).backgroundColor])"
        found = look("three").locator("td.heat").evaluate_all(colour)
        assert len(found) == 9
        by_agreement = dict(found)
        assert len(set(by_agreement.values())) == len(by_agreement) == 4, "1, 0.842, 0.811 and 0.867"
        assert not any("0, 0, 0, 0" in shown for shown in by_agreement.values())

    def test_the_first_screen_has_the_verdicts_and_the_table(self, look: Callable[..., Page]) -> None:
        page = look("three")
        lowest = (
            "(name) => Math.max(...[...document.querySelectorAll(name)].map((found) => found.getBoundingClientRect().bottom))"
        )
        assert 0 < page.evaluate(lowest, ".finding") < 800
        assert 0 < page.evaluate(lowest, ".summary table") < 800
        phone = look("three", 360)
        assert 0 < phone.evaluate(lowest, ".verdict.alarm") < 740
        assert phone.evaluate("document.querySelector('.verdict').classList.contains('alarm')")

    def test_wide_tables_scroll_in_their_box_with_the_names_in_sight(self, look: Callable[..., Page]) -> None:
        page = look("three", 360)
        table = page.locator(".summary")
        assert table.evaluate("(box) => box.scrollWidth > box.clientWidth")
        table.focus()
        page.keyboard.press("End")
        table.evaluate("(box) => box.scrollTo(300, 0)")
        assert table.evaluate("(box) => box.scrollLeft") > 100
        assert table.evaluate("(box) => box.querySelector('tbody th').getBoundingClientRect().left") == pytest.approx(16, abs=1)

    def test_on_paper_everything_is_shown_in_black_on_white(self, look: Callable[..., Page]) -> None:
        page = look("three", 1280, "dark")
        closed = "[...document.querySelectorAll('details:not([open])')].map((found) => found.getBoundingClientRect().height)"
        before = sum(page.evaluate(closed))
        page.emulate_media(media="print")
        assert sum(page.evaluate(closed)) > 5 * before, "what is folded is shown"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert page.locator("nav:visible").count() == 0
        pdf = page.pdf(format="A4")
        assert pdf.startswith(b"%PDF") and len(pdf) > 50_000

    def test_links_and_folds_work_without_a_script(self, look: Callable[..., Page]) -> None:
        page = look("three")
        page.click("nav a[href='#calibration']")
        assert page.evaluate("document.querySelector(':target').id") == "calibration"
        page.click("#mistakes summary >> nth=0")
        page.click("#mistakes .pair summary >> nth=0")
        assert page.locator("#mistakes .pair pre").first.is_visible()


def test_the_documentation_says_how_every_figure_and_chart_is_read() -> None:
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, figure in FIGURES.items():
        row = f"| `{name.replace('*', 'RATING')}` | {figure.title.format('RATING')} | {figure.meaning.format('RATING')} |"
        assert row in page
    for sentence in CHARTS.values():
        assert f"| {sentence} |" in page
        assert sentence.count(". ") == 0
    for kind in re.findall(r'Finding\("(\w+)"', Path(findings.__file__).read_text(encoding="utf-8")):
        assert f"| `{kind}` |" in page
