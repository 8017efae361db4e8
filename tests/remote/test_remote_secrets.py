"""What the user configured to open a server is in no text, by its value: however a server quotes it, and wherever a message is cut."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.cli.program import main
from rm_plugins.errors import RmPluginsError, SpecError
from rm_plugins.protocols import TEI, VLLM, Native, OpenRLHF, Protocol, SGLang
from rm_plugins.providers.remote import Remote
from rm_plugins.redaction import keep_secret, redacted
from tests.fault_proxy import Scorer, reward_of
from tests.remote.conftest import EXPECTED, SAMPLES, remote, replies
from tests.servers import serving

KEY = 'zq-93/7f"4e1c+b8xxyv'
HEADER = "Token w5Gh8Jk2mQ4tU6"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_KEY", KEY)


def says_nothing(text: str) -> None:
    for secret in (KEY, "w5Gh8Jk2mQ4tU6"):
        for start in range(len(secret) - 5):
            assert secret[start : start + 6] not in text, text


QUOTES: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "with others": lambda key: f"no key like {key!r}, but almost",
    "behind much else": lambda key: "x" * 62 + key,
    "cut": lambda key: f"the key begins {key[:12]}...",
    "for a URL": lambda key: quote(key, safe=""),
    "as JSON": lambda key: json.dumps(json.dumps({"key": key})),
    "as base64": lambda key: base64.b64encode(key.encode()).decode(),
}


class TestWhatServersQuote:
    @pytest.mark.parametrize("status", [200, 400, 401, 404, 500, 302])
    @pytest.mark.parametrize("quoted", QUOTES)
    def test_no_error_and_no_line_of_a_log_has_it(self, quoted: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        for name in ("httpcore2.http11", "rm_plugins"):
            caplog.set_level(logging.DEBUG, name)
        told = QUOTES[quoted](KEY) + QUOTES[quoted]("w5Gh8Jk2mQ4tU6")
        echo = {"location": f"http://other/{told}".replace("\n", ""), "x-echo": told.replace("\n", "")}
        scorer = Scorer()
        scorer.before = replies(*[(status, echo, json.dumps({"error": {"message": told}}).encode())] * 9)
        with (
            remote(scorer, tries=2, api_key_env="SCORER_KEY", headers={"X-Whatever": HEADER}) as provider,
            pytest.raises(RmPluginsError) as caught,
        ):
            provider.score(SAMPLES[:2])
        says_nothing("".join(traceback.format_exception(caught.value)))
        says_nothing(str(pickle.loads(pickle.dumps(caught.value))))
        says_nothing(caplog.text)
        assert status == 200 or "***" in str(caught.value)
        assert scorer.headers[-1]["authorization"] == f"Bearer {KEY}"
        assert scorer.headers[-1]["x-whatever"] == HEADER

    @pytest.mark.parametrize("protocol", [Native, OpenRLHF, TEI, VLLM, SGLang])
    def test_nor_where_the_answer_itself_is_the_quotation(
        self, protocol: type[Protocol], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)

        async def echo(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"x-echo", KEY.encode())]})
            body = json.dumps([KEY, {"rewards": KEY, "version": KEY, "protocol": KEY, "model_id": KEY}]).encode()
            await send({"type": "http.response.body", "body": body})

        with (
            remote(echo, tries=1, protocol=protocol(), api_key_env="SCORER_KEY") as provider,
            pytest.raises(RmPluginsError) as caught,
        ):
            provider.score(SAMPLES[:2])
        says_nothing("".join(traceback.format_exception(caught.value)) + caplog.text)

    def test_nor_where_a_sample_fails_or_the_model_is_called_so(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        scorer = Scorer(
            fingerprint=f"model of {KEY}", reward=lambda text: ValueError(f"bad {KEY}") if "a" in text else reward_of(text)
        )
        with remote(scorer, api_key_env="SCORER_KEY") as provider:
            scores = provider.score(SAMPLES, on_error="abstain")
        says_nothing(str(scores) + str(scores.errors) + caplog.text)
        assert scores.values.tolist()[1:] == EXPECTED[1:]

    def test_numbers_that_look_like_a_header_stay_what_they_are(self) -> None:
        with remote(Scorer(reward=lambda text: 1234.5), headers={"X-Shard": "1234", "X-Type": "rewards"}) as provider:
            assert provider.score(SAMPLES).values.tolist() == [1234.5] * 5


class TestWhatIsShown:
    SPEC: ClassVar[dict[str, Any]] = {
        "provider": "remote",
        "url": "http://127.0.0.1:9",
        "protocol": "rm-plugins",
        "headers": {"X-Whatever": HEADER, "X-N": "7"},
    }

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_the_command_shows_that_there_are_headers_and_no_more(self, options: list[str], tmp_path: Any) -> None:
        nested = {"provider": "sum", "members": [self.SPEC, {"provider": "constant", "value": 1.0, "label": HEADER}]}
        (tmp_path / "spec.json").write_text(json.dumps(nested))
        shown = CliRunner().invoke(main, ["show", str(tmp_path / "spec.json"), *options])
        assert shown.exit_code == 0, shown.output
        assert "headers" in shown.output
        assert '"7"' not in shown.output, "however short"
        says_nothing(shown.output)

    def test_nor_has_a_repr_them_while_a_copy_still_sends_them(self) -> None:
        scorer = Scorer()
        with serving(scorer, lifespan="off") as url:
            provider = rm.load({**self.SPEC, "url": url})
            again = pickle.loads(pickle.dumps(provider))
            says_nothing(repr(provider) + repr(again) + repr(vars(again)["_settings"]))
            assert again.score(SAMPLES).values.tolist() == EXPECTED
            again.close()
        assert scorer.headers[-1]["x-whatever"] == HEADER

    @pytest.mark.parametrize(
        "settings",
        [
            {"url": f"http://me:{KEY}@127.0.0.1:1"},
            {"url": f"me:{KEY}@127.0.0.1:1"},
            {"url": f"http://host:{KEY[:3]}w5Gh8Jk2mQ4tU6"},
            {"url": "http://127.0.0.1:1?key=w5Gh8Jk2mQ4tU6"},
            {"url": "http://127.0.0.1:1#w5Gh8Jk2mQ4tU6"},
            {"url": "ftp://127.0.0.1:1?w5Gh8Jk2mQ4tU6"},
            {"api_key_env": "w5Gh8Jk2mQ4tU6"},
            {"headers": {"X-Key": ["w5Gh8Jk2mQ4tU6"]}},
            {"headers": {"X-Key": "w5Gh8Jk2mQ4tU6\n"}},
            {"headers": {"Authorization": "w5Gh8Jk2mQ4tU6"}},
        ],
    )
    def test_a_spec_that_is_refused_is_not_quoted(self, settings: dict[str, Any]) -> None:
        with pytest.raises(SpecError) as caught:
            rm.load({**self.SPEC, **settings})
        says_nothing(str(caught.value))

    def test_a_proxys_password_is_a_secret_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://me:w5Gh8Jk2mQ4tU6@127.0.0.1:9")
        monkeypatch.delenv("NO_PROXY", raising=False)
        provider = Remote(url="http://scorer.example", protocol=Native(), deadline=0.3)
        with pytest.raises(RmPluginsError) as caught:
            provider.score(SAMPLES[:1])
        says_nothing("".join(traceback.format_exception(caught.value)))
        assert redacted("w5Gh8Jk2mQ4tU6") == "***"
        provider.close()
        assert redacted("w5Gh8Jk2mQ4tU6") == "w5Gh8Jk2mQ4tU6"


class Owner:
    """Has secrets."""


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc", "Zs"]), min_size=8, max_size=60), st.data())
def test_any_secret_is_gone_whole_and_in_pieces_until_its_owner_is(secret: str, data: st.DataObject) -> None:
    owner = Owner()
    keep_secret(owner, secret)
    start = data.draw(st.integers(0, max(0, len(secret) - 6)))
    piece = secret[start : data.draw(st.integers(min(start + 6, len(secret)), len(secret)))]
    if len(piece) >= 6 and "*" not in piece:
        assert piece not in redacted(f"before {piece} behind")
    del owner
    assert redacted(f"before {piece} behind") == f"before {piece} behind"


@pytest.mark.parametrize("secret", ["ab12", "a1 b2 c3", "Basic bWU6YWIxMg=="])
def test_short_ones_are_gone_as_well(secret: str) -> None:
    owner = Owner()
    keep_secret(owner, secret)
    assert "ab12" not in redacted(f"no such key: {secret.rpartition(' ')[0]}ab12") or secret == "a1 b2 c3"
    assert secret not in redacted(f"no such key: {secret}.")


def test_a_headers_word_is_a_word_for_all_others() -> None:
    with remote(Scorer(), headers={"X-Team": "rewards"}) as provider:
        provider.score(SAMPLES)
        assert redacted("POST /v1/rewards") == "POST /v1/***"
    assert redacted("POST /v1/rewards") == "POST /v1/rewards"
