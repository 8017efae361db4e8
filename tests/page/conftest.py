"""The page of the server in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from rm_plugins.server.page import router
from tests.servers import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")


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
