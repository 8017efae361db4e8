"""A judge on a server: what vLLM, SGLang, llama.cpp and OpenAI answer and refuse, over real sockets."""

from __future__ import annotations

import os
import pickle
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from rm_plugins.errors import ScoringError, SpecError, UnsupportedError
from rm_plugins.judges import Judge, Question, Reply, cost_of
from rm_plugins.spec import component
from rm_plugins.testing import check_judge
from tests.fake_servers.chat import chat
from tests.fake_servers.judge import Choice, choice, judge
from tests.servers import free_port, serving

SCHEMA = {"type": "object", "properties": {"1": {"type": "string"}}}


def question(text: str = "2+2 = 4?", **more: Any) -> Question:
    return Question(({"role": "user", "content": text},), **more)


def asked(app: Any, *questions: Question, **settings: Any) -> list[Reply]:
    with serving(app) as url:
        made = component("judge", {"name": "openai", "url": url, "tries": 2, **settings})
        try:
            replies: list[Reply] = made.ask(questions)
        finally:
            made.close()
    return replies


def says(*tokens: Any, **more: Any) -> Any:
    return chat(lambda text: choice(*tokens, **more))


def test_a_text_and_its_tokens() -> None:
    assert asked(says("It is right. [[A]]"), question("a b c")) == [Reply("It is right. [[A]]", None, "", 3, 2)]


def test_label_probabilities_come_from_the_first_token_of_the_answer() -> None:
    app = says(("Yes", {"Yes": 0.6, "yes": 0.1, "No": 0.2}), ".")
    (reply,) = asked(app, question(labels=("Yes", "No")))
    assert reply.label_probabilities == pytest.approx({"Yes": 0.7, "No": 0.2})
    assert (reply.text, reply.error) == ("Yes.", "")
    assert {key: app.state.bodies[0][key] for key in ("max_tokens", "logprobs", "top_logprobs", "temperature")} == {
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 0,
    }


def test_reasoning_is_passed_over() -> None:
    tokens = ("<think>", "No", "?", "</think>", "\n", ("Yes", {"Yes": 0.9, "No": 0.1}))
    (reply,) = asked(says(*tokens), question(labels=("Yes", "No")))
    assert reply.label_probabilities == pytest.approx({"Yes": 0.9, "No": 0.1})
    assert asked(says("<think>[[B]]</think>\n[[A]]"), question())[0].text == "[[A]]"
    assert asked(says(content="[[A]]", reasoning_content="[[B]]?"), question())[0].text == "[[A]]"


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (choice("[[A", finish_reason="length"), "cut off at max_tokens"),
        (choice("[[A]]", refusal="I cannot compare."), "refused to answer: I cannot compare."),
        (choice("[[A]]", finish_reason="content_filter"), "withheld by a content filter"),
        ({**choice(""), "message": {"role": "assistant", "content": None}}, "is empty (finish_reason: stop)"),
        (
            {**choice(""), "message": {"role": "assistant", "content": None, "reasoning_content": "[[A]]"}},
            "is empty after its reasoning",
        ),
        ({**choice(""), "message": {"role": "assistant", "content": "", "reasoning": "[[A]]"}}, "is empty after its reasoning"),
        (choice("<think>[[A]]"), "reasoning did not end"),
    ],
)
def test_what_is_no_answer_is_an_error_of_the_question(found: Choice, error: str) -> None:
    (reply,) = asked(chat(lambda text: {**found}), question())
    assert (reply.text, reply.label_probabilities) == ("", None)
    assert error in reply.error


def test_the_key_that_limits_an_answer_is_named() -> None:
    cut = choice("<think>", "Yes", finish_reason="length")
    (reply,) = asked(chat(lambda text: {**cut}), question(labels=("Yes", "No")))
    assert "did not end within label_tokens; raise it" in reply.error
    (reply,) = asked(chat(lambda text: {**cut}, has_logprobs=False), question(labels=("Yes", "No")))
    assert "cut off at label_tokens; raise label_tokens" in reply.error


def test_a_content_of_parts_is_text() -> None:
    parts = [{"type": "text", "text": "[["}, {"type": "text", "text": "A]]"}]
    found = {**choice(""), "message": {"role": "assistant", "content": parts}}
    assert asked(chat(lambda text: found), question())[0].text == "[[A]]"


def test_without_log_probabilities_there_is_the_text() -> None:
    app = chat(lambda text: choice("Yes"), has_logprobs=False)
    assert asked(app, question(labels=("Yes", "No"))) == [Reply("Yes", None, "", 3, 2)]


@pytest.mark.parametrize("key", ["max_tokens", "logprobs", "response_format"])
def test_a_key_that_a_server_refuses_is_left_out_from_then_on(key: str, caplog: pytest.LogCaptureFixture) -> None:
    app = chat(lambda text: choice("Yes"), refuses=[key])
    labels = ("Yes", "No") if key == "logprobs" else ()
    questions = [question(f"q{number}", labels=labels, schema=None if labels else SCHEMA) for number in range(3)]
    with serving(app) as url:
        made = component("judge", {"name": "openai", "url": url, "concurrency": 1})
        replies = made.ask(questions)
        assert [reply.text for reply in replies] == ["Yes"] * 3
        assert [key in body for body in app.state.bodies] == [True, False, False, False]
        assert made.counts["requests"] == 4
        made.close()
    assert len([record for record in caplog.records if f"refuses `{key}`" in record.message]) == 1
    if key == "max_tokens":
        assert app.state.bodies[-1]["max_completion_tokens"] == 1024


def test_a_question_that_is_too_long_is_not_taken_for_a_refused_key(caplog: pytest.LogCaptureFixture) -> None:
    message = "'max_tokens' or 'max_completion_tokens' is too large: 1024. This model's maximum context length is 512 tokens"
    app = chat(lambda text: choice("Yes"), before=lambda number: JSONResponse({"message": message, "code": 400}, 400))
    (reply,) = asked(app, question())
    assert "maximum context length is 512" in reply.error
    assert len(app.state.bodies) == 1
    assert "refuses" not in caplog.text


def test_an_answer_that_is_an_error_is_told() -> None:
    app = chat(lambda text: choice("Yes"), before=lambda number: JSONResponse({"error": {"message": "no such model"}}, 200))
    assert "the answer is an error: no such model" in asked(app, question())[0].error


def test_a_schema_that_must_be_sent_or_must_not() -> None:
    refusing = chat(lambda text: choice("Yes"), refuses=["response_format"])
    (reply,) = asked(refusing, question(schema=SCHEMA), structured="always")
    assert "json_schema' is not supported" in reply.error
    app = says("Yes")
    asked(app, question(schema=SCHEMA), structured="never")
    assert "response_format" not in app.state.bodies[0]
    app = says("Yes")
    asked(app, question(schema=SCHEMA))
    assert app.state.bodies[0]["response_format"]["json_schema"]["schema"] == SCHEMA


def test_equal_questions_are_asked_once_and_order_is_kept() -> None:
    app = chat(lambda text: choice(f"[[{text}]]"))
    texts = ["b", "a", "b", "c", "a", "b"]
    replies = asked(app, *map(question, texts))
    assert [reply.text for reply in replies] == [f"[[{text}]]" for text in texts]
    assert Counter(body["messages"][0]["content"] for body in app.state.bodies) == {"a": 1, "b": 1, "c": 1}
    assert [reply.cached for reply in replies] == [False, False, True, False, True, True]
    cost = cost_of(replies, 0.0)
    assert (cost["calls"], cost["cached"], cost["prompt_tokens"], cost["completion_tokens"]) == (3, 3, 3, 6)


def test_one_question_that_fails_does_not_affect_the_others() -> None:
    def before(number: int) -> JSONResponse | None:
        return None

    def answer(text: str) -> Choice:
        if text == "bad":
            raise RuntimeError("this message makes the server fail")
        return choice(text)

    replies = asked(chat(answer, before=before), question("good"), question("bad"), question("fine"))
    assert [reply.text for reply in replies] == ["good", "", "fine"]
    assert "it answered 500" in replies[1].error
    assert "tried 2 times" in replies[1].error


def test_a_failure_that_passes_is_retried() -> None:
    app = chat(lambda text: choice("Yes"), before=lambda number: JSONResponse({"error": "busy"}, 503) if number < 1 else None)
    assert asked(app, question())[0].text == "Yes"


def test_two_servers_share_the_questions() -> None:
    apps = [chat(lambda text: choice(text)) for _ in range(2)]
    with serving(apps[0]) as one, serving(apps[1]) as two:
        made = component("judge", {"name": "openai", "url": [one, two], "model": "judge"})
        replies = made.ask([question(str(number)) for number in range(40)])
        made.close()
    assert [reply.text for reply in replies] == [str(number) for number in range(40)]
    assert all(app.state.bodies for app in apps)


def test_threads_may_ask_at_the_same_time() -> None:
    app = chat(lambda text: choice(text))
    answers: dict[int, list[str]] = {}
    with serving(app) as url:
        made = component("judge", {"name": "openai", "url": url, "model": "judge"})

        def ask(thread: int) -> None:
            answers[thread] = [reply.text for reply in made.ask([question(f"{thread}/{number}") for number in range(10)])]

        threads = [threading.Thread(target=ask, args=[thread]) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        made.close()
    assert answers == {thread: [f"{thread}/{number}" for number in range(10)] for thread in range(4)}


def test_no_server_and_a_wrong_model_are_errors_of_all() -> None:
    made = component("judge", {"name": "openai", "url": f"http://127.0.0.1:{free_port()}", "deadline": 0.5})
    assert "deadline" in made.ask([question()])[0].error
    made.close()
    with serving(judge(lambda text: choice("Yes"), models=("one", "two"))) as url:
        made = component("judge", {"name": "openai", "url": url})
        with pytest.raises(UnsupportedError, match=r"lists 'one', 'two'\. Name the model that judges"):
            made.ask([question()])
        made.close()
        made = component("judge", {"name": "openai", "url": url, "model": "three"})
        with pytest.raises(ScoringError, match="The model `three` does not exist"):
            made.ask([question()])
        made.close()


def test_the_key_is_sent_and_appears_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret-key")
    app = chat(lambda text: choice("x", refusal="your key is sk-very-secret-key"))
    with serving(app) as url:
        made = component("judge", {"name": "openai", "url": url, "api_key_env": "JUDGE_KEY"})
        (reply,) = made.ask([question()])
        assert "sk-very-secret-key" not in reply.error
        assert b"sk-very-secret-key" not in pickle.dumps(made)
        assert pickle.loads(pickle.dumps(made)).ask([question()])[0].error == reply.error
        made.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_asks_over_connections_of_its_own() -> None:
    with serving(says("Yes")) as url:
        made = component("judge", {"name": "openai", "url": url})
        (reply,) = made.ask([question()])
        if (child := os.fork()) == 0:
            is_right = made.ask([question()]) == [reply] and made.counts["requests"] == 2
            made.close()
            os._exit(0 if is_right else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert made.ask([question()]) == [reply]
        assert made.counts["requests"] == 2
        made.close()


def test_a_cache_is_found_by_the_model_and_the_question(tmp_path: Path) -> None:
    app = chat(lambda text: choice(("Yes", {"Yes": 0.7, "No": 0.3})))
    settings: dict[str, Any] = {"cache": str(tmp_path / "cache"), "model": "judge"}
    first = asked(app, question(labels=("Yes", "No")), question("b"), **settings)
    again = asked(app, question(labels=("Yes", "No")), question("b"), **settings)
    assert len(app.state.bodies) == 2
    assert [reply.cached for reply in again] == [True, True]
    assert [(one.text, one.label_probabilities) for one in again] == [(one.text, one.label_probabilities) for one in first]
    assert cost_of(again, 0.0)["prompt_tokens"] == 0
    asked(app, question("b"), **{**settings, "temperature": 1.0})
    asked(app, question("b"), **{**settings, "timeout": 7.0})
    assert len(app.state.bodies) == 3  # another temperature gives another answer; another timeout does not


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"url": "ftp://x"}, "url: .*is not the URL of a server"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"label_tokens": 0}, "label_tokens: must be at least 1"),
        ({"temperature": -1.0}, "temperature: must be a number that is not negative"),
        ({"top_logprobs": 21}, "top_logprobs: must be from 0"),
        ({"structured": "maybe"}, "structured: "),
        ({"timeout": 0.0}, "timeout: must be a positive number"),
        ({"headers": {"Authorization": "Bearer x"}}, "headers.Authorization: a spec must not contain secrets"),
        ({"cache": "/dev/null/x"}, "cache: the folder '/dev/null/x' cannot be made"),
        ({"modell": "x"}, "unknown key 'modell' for 'openai'. Did you mean 'model'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        component("judge", {"name": "openai", "url": "http://127.0.0.1:1", **keys})


def test_the_contract_holds() -> None:
    app = chat(lambda text: choice(("Yes", {"Yes": 0.7, "No": 0.2})) if "label" in text else choice(f"It is {text}."))
    with serving(app) as url:
        made = component("judge", {"name": "openai", "url": url})
        check_judge(made, [question("a label", labels=("Yes", "No")), question("b"), question("c")])
        made.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda asked: [Reply("A")], "gave 1 replies to 2 questions"),
        (lambda asked: [Reply("A", error="cut off") for _ in asked], "either a text or an error"),
        (lambda asked: [Reply("A", {"A": 0.9, "B": 0.9}) for _ in asked], "has the probabilities of"),
        (lambda asked: [Reply(str(place)) for place, _ in enumerate(asked)], "depend on the order"),
    ],
)
def test_a_judge_that_breaks_the_contract_is_found(answer: Any, message: str) -> None:
    class Broken(Judge):
        name = "broken"

        def ask(self, questions: Sequence[Question]) -> list[Reply]:
            return answer(questions) if questions else []

    with pytest.raises(AssertionError, match=message):
        check_judge(Broken(), [question("a"), question("b")])
