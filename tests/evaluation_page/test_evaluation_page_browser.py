"""The page of an evaluation in a browser, and beside its documentation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pytest

from rm_plugins.evaluation import findings
from rm_plugins.evaluation.figures import FIGURES
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.reports import evaluation_page
from rm_plugins.reports.evaluation_page import CHARTS

pytest.importorskip("matplotlib", reason="matplotlib, which draws the charts, is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


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
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, figure in FIGURES.items():
        row = f"| `{name.replace('*', 'RATING')}` | {figure.title.format('RATING')} | {figure.meaning.format('RATING')} |"
        assert row in page
    for sentence in CHARTS.values():
        assert f"| {sentence} |" in page
        assert sentence.count(". ") <= 2
    for kind in re.findall(r'Finding\("(\w+)"', Path(findings.__file__).read_text(encoding="utf-8")):
        assert f"| `{kind}` |" in page


class TestWhatIsHidden:
    """Readers see that there is more: to the right of a table, and in a closed row."""

    def test_a_table_that_scrolls_has_a_shadow_at_its_side_until_its_end(self, look: Callable[..., Page]) -> None:
        page = look("three", 360)
        table = page.locator(".table").first
        assert table.evaluate("box => box.scrollWidth > box.clientWidth")
        styles = table.evaluate("box => [getComputedStyle(box).backgroundImage, getComputedStyle(box).backgroundAttachment]")
        assert styles[0].count("linear-gradient") == 2 and styles[1] == "local, scroll"
        table.focus()
        before = darkest_at_the_edge(page)
        page.keyboard.press("End")
        page.keyboard.press("ArrowRight")
        table.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
        assert table.evaluate("box => box.scrollLeft > 0 && box === document.activeElement")
        assert before > 15 and darkest_at_the_edge(page) < 3, "the shadow is there, and goes at the end"

    def test_a_closed_row_shows_the_beginning_of_what_is_in_it(self, look: Callable[..., Page]) -> None:
        page = look("three")
        row = page.locator("#mistakes details.mistakes").first
        assert row.locator("> summary > .preview").inner_text().strip()
        row.locator("> summary").click()
        pair = row.locator("details.pair").first
        shown = pair.locator("summary .preview").inner_text()
        assert shown.removesuffix("…") in " ".join(pair.locator("pre").first.text_content().split())  # type: ignore[union-attr]
        pair.locator("summary").click()
        assert not pair.locator("summary .preview").is_visible()


def darkest_at_the_edge(page: Page) -> float:
    """How much darker than the page the right edge of the first table is, from 0 to 255."""
    import io

    from PIL import Image

    shot = np.asarray(Image.open(io.BytesIO(page.locator(".table").first.screenshot())).convert("L"))
    return 255 - float(shot[5:15, -6:-3].mean())
