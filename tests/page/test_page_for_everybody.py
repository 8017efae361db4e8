"""The page of the server for everybody: keyboards, readers of screens, colours, phones; and its files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from rm_plugins.server import page as page_package

if TYPE_CHECKING:
    pass
from tests.page.conftest import ATTACK, ENSEMBLE, Desk, Fake, completion_of, playwright, rendering

FOLDER = Path(page_package.__file__).parent


class TestServerThatRefuses:
    def test_a_key_is_asked_for_and_kept_for_the_tab(self, desk: Desk) -> None:
        desk.open(key="open sesame", says={"a": [1.0]})
        playwright.expect(desk.page.locator("#key-form")).to_be_visible()
        assert (desk.focus, desk.page.get_attribute("#key", "type")) == ("key", "password")
        assert desk.texts("#key-error p") == [f"No key, or one that is not known: {ATTACK}", "Request r-1"]
        desk.page.keyboard.type("guess\n")
        playwright.expect(desk.page.locator("#key-title")).to_have_text("The server does not take this key")
        desk.page.keyboard.type("open sesame\n")
        playwright.expect(desk.page.locator("#model")).to_have_text("helpful-5")
        assert desk.page.locator("#key-form").is_hidden() and desk.page.locator("#error").is_hidden()
        assert desk.score("a", "b").texts(".row .score data") == ["1.000", "0.000"]
        assert desk.run("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 1, ""]
        desk.page.click("#forget-key")
        assert desk.run("sessionStorage.length") == 0
        desk.page.keyboard.press("Control+Enter")
        playwright.expect(desk.page.locator("#key-title")).to_have_text("This server asks for a key")
        desk.page.keyboard.type("open sesame\n")
        playwright.expect(desk.page.locator("#status")).to_have_text("Completion 1 is best, with 1.000.")

    def test_a_busy_server_is_asked_once_more(self, desk: Desk) -> None:
        desk.page.clock.install()
        desk.open(busy=1, says={"a": [1.0]}).write("a", "b").page.click("#score")
        playwright.expect(desk.page.locator("#status")).to_have_text("The server is busy; trying again in 20 seconds.")
        assert len(desk.fake.asked) == 1
        desk.page.clock.fast_forward(20_000)
        playwright.expect(desk.page.locator("#status")).to_have_text("Completion 1 is best, with 1.000.")
        assert len(desk.fake.asked) == 2

    def test_a_server_that_stays_busy_is_left_alone(self, desk: Desk) -> None:
        desk.page.clock.install()
        desk.open(busy=2).write("a", "b").page.click("#score")
        playwright.expect(desk.page.locator("#status")).to_contain_text("busy")
        desk.page.clock.fast_forward(20_000)
        playwright.expect(desk.page.locator("#error")).to_contain_text("Too many samples wait.")
        desk.open(busy=1, retry_after=600).write("a", "b").page.click("#score")
        playwright.expect(desk.page.locator("#error")).to_contain_text("Too many samples wait.")
        assert len(desk.fake.asked) == 3

    def test_waiting_can_be_cancelled(self, desk: Desk) -> None:
        desk.page.clock.install()
        desk.open(busy=1).write("a", "b").page.click("#score")
        playwright.expect(desk.page.locator("#status")).to_contain_text("busy")
        desk.page.click("#cancel")
        playwright.expect(desk.page.locator("#status")).to_have_text("Cancelled.")
        desk.page.clock.fast_forward(60_000)
        assert (len(desk.fake.asked), desk.focus, desk.page.locator("#cancel").is_hidden()) == (1, "score", True)

    def test_a_server_that_is_gone_or_answers_something_else_is_told(self, desk: Desk) -> None:
        desk.open().write("a", "b").page.route("**/v1/rewards", lambda route: route.abort())
        desk.page.click("#score")
        playwright.expect(desk.page.locator("#error")).to_contain_text("The server could not be reached.")
        desk.page.route("**/v1/rewards", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
        desk.page.click("#score")
        playwright.expect(desk.page.locator("#error")).to_contain_text("status 502, and not in this page's protocol")
        desk.page.route("**/v1/rewards", lambda route: route.fulfill(json={"rewards": None}))
        desk.page.click("#score")
        playwright.expect(desk.page.locator("#error")).to_contain_text("could not read the server's answer")


class TestEverybody:
    """By keyboard, on a phone, in the dark, with any text."""

    def test_the_keyboard_is_enough(self, desk: Desk) -> None:
        desk.open(says={"blue": [1.0, 2.0], "red": [3.0, 4.0]})
        playwright.expect(desk.page.locator("#model")).to_have_text("helpful-5")
        order, rings = [], []
        for _ in range(11):
            desk.page.keyboard.press("Tab")
            order.append(desk.focus)
            rings.append(desk.run("getComputedStyle(document.activeElement).outlineStyle"))
            typed = {"prompt": "Name a colour.", "completion-1": "blue", "completion-2": "red"}.get(desk.focus)
            desk.page.keyboard.type(typed or "")
        assert order == [
            *("Go to the ranking", "copy", "", "system", "prompt", "Remove", "completion-1", "Remove", "completion-2"),
            *("add", "score"),
        ]
        assert set(rings) == {"solid"}
        desk.page.keyboard.press("Enter")
        playwright.expect(desk.page.locator(".saw")).to_have_count(2)
        assert (desk.focus, desk.texts(".row h3")) == ("score", ["Completion 2", "Completion 1"])
        desk.page.keyboard.press("Tab")
        desk.page.keyboard.press("Enter")
        playwright.expect(desk.page.locator(".tokens li")).to_have_text(["<s>", "red", "</s>"])
        for _ in range(4):  # past "The text", the other disclosure and the table, which scrolls, out of the page
            desk.page.keyboard.press("Tab")
        assert desk.run("document.activeElement === document.body")
        desk.page.focus("#completion-1")
        desk.page.keyboard.press("Control+Enter")
        playwright.expect(desk.page.locator("#status")).to_contain_text("best")
        assert (len(desk.fake.asked), desk.focus) == (2, "completion-1")

    def test_structure_and_names_are_told_to_a_screen_reader(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("no", "blue")
        tree = desk.page.locator("body").aria_snapshot()
        for part in (
            *("- banner:", "- main:", '- heading "Score completions" [level=1]', '- form "Texts":', '- region "Ranking":'),
            *('- group "The prompt is":', '- textbox "User message"', '- textbox "Completion 2"', "- list:", "- listitem:"),
            *('- button "Remove completion 1"', '- heading "Completion 2" [level=3]', '- table "All numbers', "- status:"),
        ):
            assert part in tree
        assert desk.run("document.documentElement.lang") == "en"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_texts_can_be_read_against_what_they_stand_on(self, open_desk: Callable[..., Desk], scheme: str) -> None:
        desk = open_desk(color_scheme=scheme)
        desk.open(says={**ENSEMBLE, "odd": None}, renderings=[rendering("rm-a", ["<s>", " x"], truncated=True)])
        desk.score("no", "blue", "odd")
        desk.look()
        desk.run("for (const found of document.querySelectorAll('[hidden]')) found.hidden = false")
        found = desk.run(CONTRASTS)
        assert len(found) > 60
        assert [item for item in found if item["contrast"] < 4.5] == []
        dark = desk.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 19, 22)"
        assert dark == (scheme == "dark")

    def test_a_phone_shows_all_of_it(self, open_desk: Callable[..., Desk]) -> None:
        desk = open_desk(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
        same = "w" * 300
        desk.open(says={same: [1.0] * 5, "b": [-1e-7] * 5, "c": same}, model=same, renderings=[rendering(same, [same, "<s>"])])
        desk.score(same, "b", "c", "m" * 20_000)
        desk.look()
        assert desk.run("document.documentElement.scrollWidth") == 360
        small = desk.run(
            """() => [...document.querySelectorAll('button, summary, input, textarea, .choice label')].map((found) => {
                const box = (found.closest('.choice label') ?? found).getBoundingClientRect();
                return [found.outerHTML.slice(0, 80), box.width, box.height];
            }).filter(([, width, height]) => height > 0 && (height < 44 || width < 44))"""
        )
        assert small == []
        assert desk.page.locator("#results-title").is_visible()

    def test_many_long_texts_in_any_script(self, desk: Desk) -> None:
        texts = [f"{number} " + "שלום 👩‍🚀\n" * 150 for number in range(50)]
        desk.open()
        desk.run("for (let more = 0; more < 48; more++) document.getElementById('add').click()")
        fill = "(texts) => document.querySelectorAll('.completion textarea').forEach((area, at) => { area.value = texts[at]; })"
        desk.run(fill, texts)
        desk.page.click("#score")
        playwright.expect(desk.page.locator(".saw")).to_have_count(50)
        assert [completion_of(sample) for sample in desk.fake.asked[0]] == texts
        assert desk.texts(".row .rank") == ["Rank 1"] * 50
        assert desk.run("document.documentElement.scrollWidth") <= 1280

    def test_nothing_is_read_as_html(self, desk: Desk) -> None:
        says = {ATTACK: [1.0, 2.0], "b": ATTACK}
        renderings = [rendering(ATTACK, ["<s>", ATTACK], path=ATTACK), rendering("b", [ATTACK])]
        desk.open(says=says, model=ATTACK, renderings=renderings).score(ATTACK, "b")
        desk.look()
        assert desk.texts(".row .text")[0] == desk.texts("#model")[0] == ATTACK
        assert desk.texts(".row .why") == [f"It could not be scored: {ATTACK}"]
        assert desk.page.locator("img, body script").count() == 0
        assert desk.page.title() == f"{ATTACK} · rm-plugins"

    def test_motion_and_print(self, desk: Desk) -> None:
        desk.page.emulate_media(reduced_motion="reduce")
        desk.open().score("a", "b")
        style = "[getComputedStyle(document.documentElement).scrollBehavior, getComputedStyle(score).transitionDuration]"
        assert desk.run(style) == ["auto", "0s"]
        desk.page.emulate_media(media="print", color_scheme="dark")
        assert desk.run("getComputedStyle(document.body).color") == "rgb(27, 29, 33)"  # on paper
        assert desk.page.locator("button:visible").count() == 0
        assert desk.page.locator(".row").first.is_visible()


CONTRASTS = """() => {
    const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((part) => part / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ground = (found) => {
        for (let at = found; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if ((colour[3] ?? 1) === 1) return colour;
        }
    };
    const own = (found) => [...found.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    return [...document.body.querySelectorAll('*')].filter((found) => own(found) && found.getClientRects().length).map((found) => {
        const style = getComputedStyle(found);
        const colour = parse(found instanceof SVGElement ? style.fill : style.color);
        const [one, two] = [light(colour), light(ground(found))].sort((x, y) => y - x);
        return {text: found.textContent.slice(0, 40), contrast: (one + 0.05) / (two + 0.05)};
    });
}"""


class TestFiles:
    def test_every_file_has_its_type_and_its_policy(self, served: tuple[str, list[Fake]]) -> None:
        types = {"": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
        files = [path.name for path in FOLDER.iterdir() if path.suffix in (".css", ".js", ".svg")]
        assert "page.js" in files
        for path in ("", *(f"page/{name}" for name in files)):
            found = httpx2.get(f"{served[0]}/{path}")
            assert (found.status_code, found.headers["Content-Type"].split(";")[0]) == (
                200,
                types[path.rpartition(".")[2] if path else ""],
            )
            assert found.headers["X-Content-Type-Options"] == "nosniff"
            assert found.headers["Cache-Control"] == "no-cache"
            rules = dict(rule.strip().split(" ", 1) for rule in found.headers["Content-Security-Policy"].split(";"))
            assert {rules[name] for name in ("default-src", "connect-src")} == {"'self'"}
            assert {rules[name] for name in ("frame-ancestors", "form-action", "base-uri")} == {"'none'"}

    def test_what_has_not_changed_is_not_sent_again(self, served: tuple[str, list[Fake]]) -> None:
        first = httpx2.get(f"{served[0]}/page/page.css")
        for known in (first.headers["ETag"], f'"old", W/{first.headers["ETag"]}'):
            again = httpx2.get(f"{served[0]}/page/page.css", headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
        assert httpx2.get(f"{served[0]}/page/page.css", headers={"If-None-Match": '"old"'}).content == first.content
        head = httpx2.head(f"{served[0]}/")
        assert (head.status_code, head.content) == (200, b"")

    @pytest.mark.parametrize("name", ["__init__.py", "other.js", "..%2F__init__.py"])
    def test_nothing_else_is_served(self, served: tuple[str, list[Fake]], name: str) -> None:
        assert httpx2.get(f"{served[0]}/page/{name}").status_code == 404

    def test_nothing_inline_and_nothing_from_elsewhere(self) -> None:
        text = (FOLDER / "index.html").read_text(encoding="utf-8")
        assert not re.search(r"""<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc="page/)|https?://""", text)
        for path in FOLDER.glob("*.js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text(encoding="utf-8")
            )


class TestShortcut:
    """The keys that score are those of the machine in front of the reader."""

    def test_a_phone_has_no_keys_to_press(self, open_desk: Callable[..., Desk]) -> None:
        assert open_desk().open().page.locator(".shortcut").is_visible()
        phone = open_desk(has_touch=True, is_mobile=True, viewport={"width": 360, "height": 740}).open()
        assert not phone.page.locator(".shortcut").is_visible()

    @pytest.mark.parametrize(("platform", "key"), [("MacIntel", "Cmd"), ("Linux x86_64", "Ctrl"), ("Win32", "Ctrl")])
    def test_a_mac_has_cmd(self, open_desk: Callable[..., Desk], platform: str, key: str) -> None:
        desk = open_desk()
        desk.page.add_init_script(
            f"Object.defineProperty(navigator, 'platform', {{get: () => '{platform}'}});"
            "Object.defineProperty(navigator, 'userAgentData', {get: () => undefined});"
        )
        desk.open()
        assert desk.texts(".shortcut kbd") == [key, "Enter"]

    def test_a_table_that_scrolls_has_a_shadow_and_takes_the_focus(self, open_desk: Callable[..., Desk]) -> None:
        desk = open_desk(viewport={"width": 360, "height": 740}).open(says=ENSEMBLE).score("blue", "no")
        table = desk.page.locator(".scrolled")
        assert table.evaluate("box => box.scrollWidth > box.clientWidth && box.tabIndex === 0")
        assert table.evaluate("box => getComputedStyle(box).backgroundAttachment") == "local, scroll"

    def test_the_text_that_is_folded_shows_its_beginning(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("blue", "no")
        desk.look()
        assert desk.texts(".row:first-child .saw .saw-text summary, .row:first-child .view details summary") == [
            "The text <s>blue</s>"
        ]
