"""A language model on a server as a judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from rm_plugins.component import ModelSource
from rm_plugins.judges.caching_judge import CachingJudge
from rm_plugins.judges.chat_completions import ChatCompletions, Structured, check_sampling
from rm_plugins.judges.judge import Question, Reply
from rm_plugins.one_thread import OneThread
from rm_plugins.remote import Fleet, Outcome, SendableQuestions, ServerCalls, checked_settings, checked_urls


class OpenAIServerJudge(CachingJudge):
    """A language model that any server with OpenAI's chat completions API runs: vLLM, SGLang, llama.cpp, OpenAI and others.

    Requests are retried, hedged and balanced as those of the `remote` provider. A refusal, an answer that was cut off or filtered, and a
    request without an answer are errors of the question. Label probabilities need a server that returns ``top_logprobs``; the others are
    asked for text.

    Args:
        url: The server's address without ``/v1``, or several addresses, which share the load.
        model: The model's name on the server; by default the only one that it lists.
        max_tokens: The longest answer, in tokens, including reasoning.
        label_tokens: The same for a question whose answer is a label. A model that reasons first needs more.
        temperature: The sampling temperature; 0 takes the most likely token.
        top_logprobs: The number of tokens whose log-probabilities are requested for labels, at most 20; 0 requests none.
        structured: Whether the JSON schema of a question is sent as ``response_format``: ``auto`` where the server takes it, ``always``, or
            ``never``.
        extra_body: Further keys of the request, such as vLLM's ``chat_template_kwargs``; null removes a key.
        cache: A folder for the replies, which any number of processes may share. It finds a reply by the model, these settings and the
            question. Without `model`, the `url` counts in its place.
        api_key_env: The environment variable that holds the key, which is sent as ``Authorization: Bearer``.
        headers: Further headers.
        concurrency: The most requests at a time to one URL.
        timeout: Seconds per request.
        deadline: Seconds for one call, with all retries; 600 if unset, see the `remote` provider.
        tries: How often a request is tried.
        hedge_after: Seconds after which a request without an answer is sent a second time; the first answer counts.
        ca_file: The certificates that sign the server's; the system's if unset.

    Raises:
        SpecError: A URL is not valid, a setting is out of range, or the environment has no key.
    """

    name: ClassVar[str] = "openai"
    concurrent: ClassVar[bool] = True
    keys_without_effect: ClassVar[frozenset[str]] = CachingJudge.keys_without_effect | {
        *("api_key_env", "ca_file", "concurrency", "deadline", "headers", "hedge_after", "timeout", "tries")
    }

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        model: str | None = None,
        max_tokens: int = 1024,
        label_tokens: int = 8,
        temperature: float = 0.0,
        top_logprobs: int = 20,
        structured: Structured = "auto",
        extra_body: Mapping[str, Any] | None = None,
        cache: str | None = None,
        api_key_env: str | None = None,
        headers: Mapping[str, Any] | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        deadline: float | None = None,
        tries: int = 6,
        hedge_after: float | None = None,
        ca_file: ModelSource | None = None,
    ) -> None:
        check_sampling(max_tokens, label_tokens, temperature, top_logprobs)
        self.urls = checked_urls(url)
        self.model = model
        self._sampling: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "label_tokens": label_tokens,
            "temperature": temperature,
            "top_logprobs": top_logprobs,
            "structured": structured,
            "extra_body": dict(extra_body or {}),
        }
        self._settings = checked_settings(
            api_key_env=api_key_env,
            headers=headers,
            concurrency=concurrency,
            timeout=timeout,
            deadline=deadline,
            tries=tries,
            hedge_after=hedge_after,
            ca_file=ca_file,
        )
        self._calls = ServerCalls(self._settings)
        self._counts = Counter[str]()
        self._counting = OneThread()
        super().__init__(cache=cache)

    @property
    def identity(self) -> dict[str, Any]:
        """The model and the sampling settings; without a model's name, the addresses."""
        return {"name": self.name, **self._sampling, **({} if self.model else {"url": list(self.urls)})}

    @property
    def called(self) -> str:
        """Its name in messages."""
        return repr(self.model or self.urls[0])

    @property
    def counts(self) -> Counter[str]:
        """Counts so far, as of the `remote` provider: ``requests``, ``retries``, ``hedges``, and problems such as ``timeouts``."""
        return self._counts

    def answers(self, questions: Sequence[Question]) -> list[Reply]:
        """Ask the servers; retries and the servers' troubles are added to `counts`."""
        tally = Counter[str]()
        try:
            outcomes = self._calls.outcomes(SendableQuestions(questions), self._made_fleet, tally)
        finally:
            with self._counting:
                self._counts.update(tally)
        return [_reply(outcome) for outcome in outcomes]

    def close(self) -> None:
        """Close the connections; asking again opens new ones."""
        self._calls.close()

    def _made_fleet(self) -> Fleet:
        return Fleet(self.urls, ChatCompletions(**self._sampling), self._settings, f"{self.called} (a judge)")


def _reply(outcome: Outcome) -> Reply:
    if isinstance(outcome.reply, Reply):
        return replace(outcome.reply, error=outcome.error)
    return Reply("", error=outcome.error or "there is no reply")
