"""The server's page, in a real browser: what a person sees, by mouse and by keyboard, and what the page asks of the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import rm_plugins as rm
from rm_plugins.server import Settings, create_app
from rm_plugins.server import page as page_package
from rm_plugins.server.page import router
from tests.servers import serving

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FOLDER = Path(page_package.__file__).parent
FINGERPRINT = "0123456789abcdef" * 4
ATTACK = "<img src=x onerror=\"document.title='owned'\">"


@dataclass
class Fake:
    """A server that speaks the native protocol, and says of each completion what a test has it say.

    Args:
        says: By completion, the members' scores, None to abstain, or the message of a failure; 0.0 for any other.
        key: That it asks for, if any.
        busy: How many requests for rewards it turns away first.
        retry_after: For how long it then asks to wait, in seconds.
        renderings: Of every sample; by default one model that saw its completion word by word.
        model: The name of its reward.
    """

    says: Mapping[str, list[float] | str | None] = field(default_factory=dict)
    key: str = ""
    busy: int = 0
    retry_after: int = 20
    renderings: list[dict[str, Any]] | None = None
    model: str = "helpful-5"
    asked: list[Any] = field(default_factory=list)

    def answer(self, path: str, body: Any, authorization: str | None) -> Any:
        if self.key and authorization != f"Bearer {self.key}":
            return problem(401, "unauthorized", f"No key, or one that is not known: {ATTACK}")
        if path == "info":
            return {"model": self.model, "fingerprint": FINGERPRINT, "max_items": 60, "rendered": True, "spec": None}
        completions = [completion_of(sample) for sample in body["samples"]]
        if path == "render":
            return {"renderings": [self.rendering(text) for text in completions]}
        self.asked.append(body["samples"])
        if self.busy:
            self.busy -= 1
            return problem(429, "overload", "Too many samples wait.", {"Retry-After": str(self.retry_after)})
        return self.rewards([self.says.get(text, [0.0]) for text in completions])

    def rewards(self, said: Sequence[list[float] | str | None]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        for index, found in enumerate(said):
            row = {"index": index, "reward": fmean(found) if isinstance(found, list) else None}
            rows.append({**row, "error": found} if isinstance(found, str) else row)
        details = {}
        members = max((len(found) for found in said if isinstance(found, list)), default=0)
        if members > 1:
            for number in range(members):
                details[f"member/{number}"] = [(found * members)[number] if isinstance(found, list) else None for found in said]
            details["std"] = [pstdev(found) if isinstance(found, list) else None for found in said]
        usage = {"samples": len(said), "tokens": 12 * len(said), "truncated": 1}
        shared = {"model": self.model, "fingerprint": FINGERPRINT, "details": details, "usage": usage}
        return {**shared, "rewards": rows[::-1]}  # in no order that the page may rely on

    def rendering(self, completion: str) -> list[dict[str, Any]]:
        if self.renderings is not None:
            return self.renderings
        return [rendering("rm-a", ["<s>", *re.findall(r"\s*\S+|\s+$", completion), "</s>"])]


def rendering(model: str, tokens: list[str], *, path: str = "", truncated: bool = False) -> dict[str, Any]:
    ids = list(range(100, 100 + len(tokens)))
    return {"model": model, "path": path, "text": "".join(tokens), "tokens": tokens, "token_ids": ids, "truncated": truncated}


def completion_of(sample: dict[str, Any]) -> str:
    found = sample["completion"]
    return str(found if isinstance(found, str) else found[0]["content"])


def problem(status: int, cause: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"cause": cause, "message": message, "request_id": "r-1"}}, status, headers)


class Desk:
    """The page in a tab of the browser, and the server behind it."""

    def __init__(self, page: Page, url: str, fake: Fake) -> None:
        self.page, self.url, self.fake = page, url, fake
        self.complaints: list[str] = []
        self.requested: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None)

    def open(self, **says: Any) -> Desk:
        for name, value in says.items():
            setattr(self.fake, name, value)
        self.page.goto(self.url)
        return self

    def write(self, *completions: str, prompt: str = "Name a colour.") -> Desk:
        self.page.fill("#prompt", prompt)
        for place, text in enumerate(completions, 1):
            if self.page.locator(".completion").count() < place:
                self.page.click("#add")
            self.page.fill(f"#completion-{place}", text)
        return self

    def score(self, *completions: str) -> Desk:
        self.write(*completions)
        self.page.click("#score")
        playwright.expect(self.page.locator("#score")).to_have_text("Score")
        playwright.expect(self.page.locator("#results")).to_have_class(re.compile("filled"))
        return self

    def look(self) -> Desk:
        """Open what the model saw of the best completion."""
        self.page.click(".row:first-child summary >> nth=0")
        playwright.expect(self.page.locator(".row:first-child .tokens").first).to_be_attached()
        return self

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_text_contents()

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    @property
    def focus(self) -> str:
        return str(self.run("document.activeElement.id || document.activeElement.textContent.trim()"))


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[str, list[Fake]]]:
    """One server for all tests; the last of the list answers."""
    app, fakes = FastAPI(), [Fake()]
    app.include_router(router)

    @app.api_route("/v1/{path}", methods=["GET", "POST"])
    async def answer(path: str, request: Request) -> Any:
        body = await request.json() if request.method == "POST" else None
        return fakes[-1].answer(path, body, request.headers.get("Authorization"))

    with serving(app) as url:
        yield url, fakes


@pytest.fixture
def open_desk(browser: Browser, served: tuple[str, list[Fake]]) -> Iterator[Callable[..., Desk]]:
    """Opens the page; afterwards it must have asked nobody else for anything, and the console must be empty."""
    url, fakes = served
    fakes.append(Fake())
    desks: list[Desk] = []

    def make(url: str = url, **settings: Any) -> Desk:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        context.set_default_timeout(5_000)
        desks.append(Desk(context.new_page(), url, fakes[-1]))
        return desks[-1]

    yield make
    for desk in desks:
        desk.page.context.close()
        assert [asked for asked in desk.requested if not asked.startswith(f"{desk.url}/")] == []
        # Chromium itself notes every answer that is an error, which some tests ask for.
        assert [said for said in desk.complaints if not said.startswith("Failed to load resource")] == []


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    return open_desk()


ENSEMBLE = {"blue": [1.0, 2.0, 3.0], "no": [-1.0, -1.0, -4.0], "red": [0.5, 0.5, 0.5]}


class TestRanking:
    def test_the_best_comes_first_with_its_rank_its_number_and_its_score(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("no", "blue", "red")
        assert desk.texts(".row .rank") == ["Rank 1", "Rank 2", "Rank 3"]
        assert desk.texts(".row h3") == ["Completion 2", "Completion 3", "Completion 1"]
        assert desk.texts(".row .score data") == ["2.000", "0.500", "−2.000"]
        assert desk.texts(".row .text") == ["blue", "red", "no"]
        assert desk.texts("#status") == ["Completion 2 is best, with 2.000."]
        assert re.fullmatch(r"3 completions · [\d,]+ ms · 36 tokens · 1 truncated", desk.texts("#summary")[0])
        assert (desk.texts("#model"), desk.texts("#fingerprint")) == (["helpful-5"], [FINGERPRINT[:12]])

    def test_equal_scores_share_a_rank(self, desk: Desk) -> None:
        desk.open(says={"a": [1.0], "b": [2.0], "c": [1.0], "d": [0.25]}).score("a", "b", "c", "d")
        assert desk.texts(".row .rank") == ["Rank 1", "Rank 2", "Rank 2", "Rank 4"]
        desk.score("b", "b", "a", "c")
        assert desk.texts("#status") == ["Completions 1 and 2 are best, with 2.000."]
        desk.score("b", "b", "b", "b")
        assert desk.texts("#status") == ["4 completions are best, with 2.000."]

    def test_bars_begin_at_the_zero_line_on_one_scale(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("no", "blue", "red")
        boxes = desk.run(
            """() => [...document.querySelectorAll('.chart')].map((chart) => {
                const side = (found) => { const box = found.getBoundingClientRect(); return [box.left, box.right]; };
                return {zero: side(chart.querySelector('.zero'))[0], bar: side(chart.querySelector('rect'))};
            })"""
        )
        zero = boxes[0]["zero"]
        assert {box["zero"] for box in boxes} == {zero}
        (best, middle, worst) = (box["bar"] for box in boxes)
        assert [best[0], middle[0], worst[1]] == pytest.approx([zero] * 3, abs=1)
        unit = (best[1] - zero) / 2.0
        assert [middle[1] - zero, zero - worst[0]] == pytest.approx([0.5 * unit, 2.0 * unit], abs=1)

    def test_each_members_score_is_a_mark_and_a_number(self, desk: Desk) -> None:
        desk.open(says=ENSEMBLE).score("no", "blue", "red")
        marks = desk.page.locator(".row").first.locator("circle title").all_text_contents()
        assert marks == ["member 0: 1.000", "member 1: 2.000", "member 2: 3.000"]
        assert desk.page.locator(".chart").first.get_attribute("aria-label") == (
            "Score 2.000; member 0 1.000, member 1 2.000, member 2 3.000; spread 0.816. On a scale from −4.000 to 3.000."
        )
        assert desk.texts(".row .spread") == ["spread 0.816", "spread 0.000", "spread 1.414"]
        assert desk.texts("table th[scope=col]") == ["Completion", "score", "member/0", "member/1", "member/2", "std"]
        assert desk.texts("table tr:nth-child(3) td") == ["−2.000", "−1.000", "−1.000", "−4.000", "1.414"]

    def test_without_members_there_is_no_mark_and_no_table(self, desk: Desk) -> None:
        desk.open(says={"a": [12_345_678.0], "b": [0.00012]}).score("a", "b")
        assert desk.texts(".row .score data") == ["1.23e+7", "1.20e−4"]
        assert (desk.page.locator("circle").count(), desk.page.locator("table").count()) == (0, 0)

    def test_what_has_no_score_says_why_and_shows_no_number(self, desk: Desk) -> None:
        desk.open(says={"bad": [-3.0], "odd": None, "long": "it has 9,000 tokens"}).score("odd", "long", "bad")
        assert desk.texts(".row h3") == ["Completion 3", "Completion 1", "Completion 2"]
        assert desk.texts(".row .rank") == ["Rank 1", "Not ranked", "Not ranked"]
        assert desk.texts(".row .score") == ["Score −3.000", "Abstained", "Failed"]
        assert desk.texts(".row .why") == [
            "The reward gave this completion no score, which is not a score of 0.",
            "It could not be scored: it has 9,000 tokens",
        ]
        assert desk.page.locator(".chart").count() == 1
        assert desk.texts("#status") == ["Completion 3 is best, with −3.000. 2 completions got no score."]

    def test_where_none_has_a_score_nobody_is_best(self, desk: Desk) -> None:
        desk.open(says={"a": None, "b": None}).score("a", "b")
        assert desk.texts("#status") == ["None of 2 completions got a score."]
        assert desk.page.locator(".axis, .chart").count() == 0


class TestWhatTheModelSaw:
    def test_tokens_show_their_white_space_and_special_ones_stand_out(self, desk: Desk) -> None:
        tokens = ["<|user|>", "\n", "Name", " a  ", "\tcolour\u200b", "</s>"]
        desk.open(renderings=[rendering("rm-a", tokens, truncated=True)]).score("blue", "red")
        assert desk.texts(".row:first-child summary")[0] == "What the model saw 6 tokens truncated"
        assert desk.page.locator(".token").count() == 0  # only made when they are asked for
        desk.look()
        assert desk.texts(".tokens li") == ["<|user|>", "↵", "Name", "·a··", "→colourU+200B", "</s>"]
        assert desk.texts(".tokens strong") == ["<|user|>", "</s>"]
        assert desk.page.locator(".tokens .token").first.get_attribute("title") == "special token, id 100"
        assert desk.texts(".facts-line")[0].startswith("rm-a saw 6 tokens. truncated The text was longer than")
        desk.page.click("text=The text before it was cut")
        assert desk.page.locator(".plain").text_content() == "".join(tokens)

    def test_there_is_a_tab_for_each_way_of_rendering(self, desk: Desk) -> None:
        renderings = [rendering("rm-a", ["x"], path="members[0]"), rendering("rm-c", ["<s>", "x"], path="members[2]")]
        desk.open(renderings=renderings).score("x", "y")
        assert desk.texts(".row:first-child summary")[0] == "What the model saw 1 to 2 tokens"
        desk.look()
        assert desk.texts("[role=tab]") == ["rm-a (members[0])", "rm-c (members[2])"]
        shown = desk.page.locator("[role=tabpanel]:visible .facts-line")
        same = "Models that were given the same are shown once."
        playwright.expect(shown).to_have_text(f"rm-a (members[0]) saw 1 token. {same}")
        desk.page.locator("[role=tab]").first.press("ArrowRight")
        assert desk.focus.startswith("rendering-") and desk.texts("[role=tab][aria-selected=true]") == ["rm-c (members[2])"]
        playwright.expect(shown).to_have_text(f"rm-c (members[2]) saw 2 tokens. {same}")

    def test_tokens_of_every_kind_of_vocabulary_are_read_back_into_text(self, desk: Desk) -> None:
        cases: dict[str, tuple[list[str | None], list[str]]] = {
            "byte-level": (["ĠcafÃ©", "Ċ", "ĠðŁ", "ĳ", "µ"], [" café", "\n", " �", "�", "�"]),
            "byte-level, cut in the middle of a character": (["µ", "Â©", "ĠðŁ"], ["�", "©", " �"]),
            "SentencePiece": (["<s>", "▁café", "<0xC3>", "<0x0A>", "▁你"], ["<s>", " café", "�", "\n", " 你"]),
            "WordPiece": (["[CLS]", "cafés", "##ing", "你"], ["[CLS]", "cafés", "##ing", "你"]),
            "ids without a name": ([None, "", "x"], ["", "", "x"]),
        }
        read = (
            "async (tokens) => (await import('./page/pieces.js')).pieces(tokens, (token) => /^[<[][a-z]+[>\\]]$/i.test(token))"
        )
        desk.open()
        for case, (tokens, texts) in cases.items():
            assert desk.run(read, tokens) == texts, case

    def test_many_tokens_come_in_portions(self, desk: Desk) -> None:
        desk.open(renderings=[rendering("rm-a", ["x"] * 4_500)]).score("x", "y")
        desk.look()
        counts = [desk.page.locator(".tokens li").count()]
        for _ in range(2):
            desk.page.click("text=/Show the next/")
            counts.append(desk.page.locator(".tokens li").count())
        assert counts == [2_000, 4_000, 4_500]
        assert desk.page.locator("text=/Show the next/").count() == 0

    def test_a_reward_without_a_model_says_so(self, desk: Desk) -> None:
        desk.open(renderings=[]).score("x", "y")
        assert desk.texts("#ranking > p.aside") == ["No part of this reward is a model, so there are no tokens to show."]


class TestForm:
    def test_a_conversation_is_sent_as_turns(self, desk: Desk) -> None:
        desk.open().page.fill("#system", "Be brief.")
        desk.score("blue", "")
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
        assert desk.fake.asked == [
            [{"prompt": turns, "completion": [{"role": "assistant", "content": text}]} for text in ("blue", "")]
        ]
        assert desk.texts(".row .text") == ["blue", "(empty)"]

    def test_plain_text_is_sent_as_it_is(self, desk: Desk) -> None:
        desk.open().page.check("input[value=plain]")
        assert desk.page.locator("#system").is_hidden()
        desk.score(" blue\n", "\nred")
        assert desk.fake.asked == [[{"prompt": "Name a colour.", "completion": text} for text in (" blue\n", "\nred")]]

    def test_completions_are_added_and_removed_and_old_scores_say_so(self, desk: Desk) -> None:
        desk.open().score("a", "b", "c")
        assert desk.page.locator("#stale").is_hidden() and desk.page.locator("#key-form").is_hidden()
        for prompt, is_stale in (("Name a city.", True), ("Name a colour.", False)):
            desk.page.fill("#prompt", prompt)
            assert desk.page.locator("#stale").is_visible() == is_stale
        desk.page.click("text=Remove >> nth=1")
        assert (desk.focus, desk.page.input_value("#completion-2")) == ("completion-2", "c")
        assert desk.texts(".completion label") == ["Completion 1", "Completion 2"]
        assert desk.page.locator("#stale").is_visible()
        desk.page.click("text=Remove >> nth=0")
        assert desk.page.locator(".completion button").is_hidden()  # one must stay

    def test_nothing_written_is_nothing_to_score(self, desk: Desk) -> None:
        desk.open().page.click("#score")
        assert desk.texts("#error") == ["There is nothing to score: write at least one completion."]
        assert (desk.focus, desk.fake.asked) == ("completion-1", [])

    def test_there_are_no_more_completions_than_the_server_takes(self, desk: Desk) -> None:
        desk.open()
        playwright.expect(desk.page.locator("#model")).to_have_text("helpful-5")
        desk.run("for (let more = 0; more < 70; more++) document.getElementById('add').click()")
        assert (desk.page.locator(".completion").count(), desk.texts("#add")) == (60, ["The server takes 60 at once"])

    def test_the_fingerprint_is_copied_whole(self, open_desk: Callable[..., Desk]) -> None:
        desk = open_desk(permissions=["clipboard-read", "clipboard-write"])
        desk.open().page.click("#copy")
        playwright.expect(desk.page.locator("#copy")).to_have_text("Copied")
        assert desk.run("navigator.clipboard.readText()") == FINGERPRINT
        desk.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as where there is no TLS
        desk.page.click("#copy")
        assert desk.run("getSelection().toString()") == FINGERPRINT

    def test_texts_stay_on_the_page(self, desk: Desk) -> None:
        desk.open().score("secret", "b")
        assert (desk.page.url, desk.page.context.cookies()) == (f"{desk.url}/", [])
        assert desk.run("[localStorage.length, sessionStorage.length]") == [0, 0]


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


def test_it_shows_what_the_server_says_of_a_real_reward(
    open_desk: Callable[..., Desk], tiny_decoder: Callable[..., Path]
) -> None:
    model = str(tiny_decoder())
    spec = {"provider": "ensemble", "members": [model, {"provider": "function", "function": lengths}]}
    texts = ["Ça va, 👩‍🚀 !", " It is blue."]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    samples = [rm.Sample(turns, text) for text in texts]
    scores = rm.load(spec).score(samples)
    with serving(create_app(rm.load(spec), Settings(api_keys=["open sesame"]))) as url:
        desk = open_desk(url=url).open()
        playwright.expect(desk.page.locator("#key-form")).to_be_visible()
        desk.page.keyboard.type("open sesame\n")
        desk.page.fill("#system", "Be brief.")
        desk.score(*texts).look()
        order = np.argsort(-scores.values)
        assert desk.texts(".row .text") == [texts[row].strip() for row in order]
        for name, values in {"score": scores.values, **scores.columns}.items():
            place = desk.texts("table th[scope=col]").index(name)
            shown = [float(text.replace("−", "-")) for text in desk.texts(f"table td:nth-child({place + 1})")]
            assert shown == pytest.approx(values[order], abs=6e-4)
        text = rm.load(model).render(samples[order[0]])
        assert desk.page.locator(".plain").first.text_content() == text
        spoken = "".join(desk.texts(".tokens li")).replace("·", " ").replace("↵", "\n")
        assert re.sub("[^ -~\n]", "", spoken) == re.sub("[^ -~\n]", "", text)
        assert desk.texts(".tokens strong")[0] == "<|start|>"


def lengths(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.messages[-1]["content"])) for sample in samples]


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
