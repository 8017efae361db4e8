"""Rewards from servers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from rm_plugins.component import ModelSource
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.models.identity import WHERE_A_MODEL_IS, model_facts
from rm_plugins.protocols import Auto, Protocol
from rm_plugins.provider import Provider
from rm_plugins.redaction import redacted
from rm_plugins.remote import Fleet, Outcome, SendableSamples, ServerCalls, checked_settings, checked_urls
from rm_plugins.rendering.render import Renderer
from rm_plugins.rendering.rendering import Read, Truncation
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores, parts_of_columns
from rm_plugins.wire import sample_to_json


class Remote(Provider):
    """A scorer on another machine, or several that serve the same model.

    Answers are checked for count, order and finiteness. Failed requests are retried as long as that may help; samples that get no answer
    fail, and never become a number. Equal samples are sent once. `counts` counts ``requests``, ``retries``, ``hedges``, ``splits``, and
    problems: ``overloads``, ``timeouts``, ``connection_errors``, ``server_errors``, ``bad_answers``, ``doubts``, ``model_changed``.

    Args:
        url: The scorer's address, or several addresses, which share the load; any of them may fail.
        protocol: The protocol it understands; detected by asking the server if unset.
        api_key_env: The environment variable that holds the key, which is sent as ``Authorization: Bearer``.
        headers: Further headers. Their values never appear in messages, but they are in the spec and in pickles.
        tokenizer: A model folder or id whose tokenizer, and manifest if it has one, render the samples here. Without it, samples are sent
            unchanged, or as text.
        chat_template: For the tokenizer: ``plain``, or a file with a Jinja template.
        append_eos: For the tokenizer: whether text ends with EOS. Without a tokenizer, false confirms that texts are sent without EOS.
        max_length: For the tokenizer: the most tokens of a sample.
        truncation: For the tokenizer: ``left`` cuts the beginning of a longer sample's prompt, ``error`` refuses it.
        read: For the tokenizer: the token at which a decoder is scored. ``before-padding`` is the last token that is not the model's
            padding token, as in transformers and TRL. ``last`` is the last token of all, as in OpenRLHF and vLLM. Rows that the server
            would score at another token are refused.
        pair: Whether the model takes prompt and completion as a pair, with separators and token types, as cross-encoders do. If not, they
            are one text. It must be set for servers whose tokenizer adds tokens at the end, if there is no `tokenizer` here.
        template_kwargs: For the tokenizer: further arguments of the chat template.
        template_date: For the tokenizer: the day for a chat template that writes the current date.
        batch_size: The most samples per request; the server's own limit if unset, and never more than that.
        concurrency: The most requests at a time to one URL; fewer while the server is overloaded.
        timeout: Seconds per request.
        deadline: Seconds for one call of `score`, with all retries; 600 if unset. If it is unset, a call also fails after 30 seconds at
            which nothing listens at any of the addresses, unless one of them has answered in this process.
        tries: How often a request is tried; while no server can be reached, it is tried until the deadline.
        hedge_after: Seconds after which a request without an answer is sent a second time; the first answer counts.
        ca_file: The certificates that sign the server's; the system's if unset.
        fingerprint: The fingerprint of the model that must score, as the server reports it.

    Raises:
        SpecError: A URL is not valid or contains a key, the environment has no key, or a setting is out of range.
        ModelError: The tokenizer cannot be loaded.
    """

    name: ClassVar[str] = "remote"
    metrics: ClassVar[tuple[str, ...]] = ("requests", "retries", "seconds")
    concurrent = True
    keys_without_effect: ClassVar[frozenset[str]] = frozenset(
        ("api_key_env", "batch_size", "ca_file", "concurrency", "deadline", "headers", "hedge_after", "timeout", "tries")
    )

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        protocol: Protocol | None = None,
        api_key_env: str | None = None,
        headers: Mapping[str, Any] | None = None,
        tokenizer: ModelSource | None = None,
        chat_template: ModelSource | None = None,
        append_eos: bool | None = None,
        max_length: int | None = None,
        truncation: Truncation | None = None,
        read: Read | None = None,
        pair: bool | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        template_date: str | None = None,
        batch_size: int | None = None,
        concurrency: int = 16,
        timeout: float = 60.0,
        deadline: float | None = None,
        tries: int = 6,
        hedge_after: float | None = None,
        ca_file: ModelSource | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.urls = checked_urls(url)
        self.label = urlsplit(self.urls[0]).netloc
        self.protocol = protocol or Auto()
        self._settings = checked_settings(
            api_key_env=api_key_env,
            headers=headers,
            batch_size=batch_size,
            concurrency=concurrency,
            timeout=timeout,
            deadline=deadline,
            tries=tries,
            hedge_after=hedge_after,
            ca_file=ca_file,
            fingerprint=fingerprint,
        )
        self._tokenizer = tokenizer
        self._rendering_settings: dict[str, Any] = {
            "chat_template": chat_template,
            "append_eos": append_eos,
            "max_length": max_length,
            "truncation": truncation,
            "read": read,
            "pair": pair,
            "template_kwargs": template_kwargs,
            "template_date": template_date,
        }
        self._calls = ServerCalls(self._settings)
        self.renderer = self._loaded_renderer()

    def _loaded_renderer(self) -> Renderer | None:
        if self._tokenizer is not None:
            from rm_plugins.models.trained_rendering import load_renderer

            return load_renderer(self._tokenizer, self._rendering_settings)
        for key, value in self._rendering_settings.items():
            if value is not None and key != "pair" and (key, value) != ("append_eos", False):
                raise SpecError(
                    "this needs a `tokenizer`, because samples are rendered here only with a tokenizer. Name one, or leave this key out.",
                    key=key,
                )
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "renderer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.renderer = self._loaded_renderer()

    @property
    def identity(self) -> list[Any]:
        """Its settings, and those of the tokenizer if there is one; not the model, which runs elsewhere."""
        if self.renderer is None:
            return super().identity
        return [self._settings_with_effect(*WHERE_A_MODEL_IS), model_facts(self.renderer), None]

    def close(self) -> None:
        """Close the connections; scoring again opens new ones."""
        self._calls.close()
        super().close()

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Let each distinct sample be scored once, by any of the servers; a sample without an answer is an error."""
        begun = time.monotonic()
        contents = [_content(sample) for sample in samples]
        firsts: dict[object, int] = {}
        for row, content in enumerate(contents):
            firsts.setdefault(content, row)
        places = {content: place for place, content in enumerate(firsts)}
        tally: Counter[str] = Counter()
        sendable = self._sendable(samples, contents, list(firsts.values()))
        outcomes = self._outcomes(sendable, tally)
        answers = [outcomes[places[content]] for content in contents]
        failed = {row: answer.error for row, answer in enumerate(answers) if answer.error}
        error = ScoringError(self._told(failed, len(samples)), rows=failed) if failed else None
        names = dict.fromkeys(name for answer in answers for name in answer.details)
        details, parts = parts_of_columns({name: _column([answer.details.get(name) for answer in answers]) for name in names})
        fingerprint = next((answer.fingerprint for answer in answers if answer.fingerprint), "")
        return Scores(
            _column([answer.value for answer in answers]),
            details,
            {
                "rows": len(samples),
                "duplicates": len(samples) - len(firsts),
                "truncated": tally["truncated"],
                "requests": tally["requests"],
                "retries": tally["retries"],
                "seconds": time.monotonic() - begun,
                **({"fingerprint": redacted(fingerprint)} if fingerprint else {}),
            },
            errors={} if error is None else error.by_row,
            parts=parts,
            tokens=None if sendable.tokens is None else sendable.tokens.rows([places[content] for content in contents]),
        )

    def _sendable(self, samples: Sequence[Sample], contents: Sequence[object], rows: Sequence[int]) -> SendableSamples:
        """What is sent for `rows`, each of which represents all samples with the same content."""
        try:
            return self._as_sendable([samples[row] for row in rows])
        except (ScoringError, DataError) as error:
            named = [rows[place] for place in error.rows or ()]
            unfit = named or [row for row in rows if self._is_unfit(samples[row])] or rows
            wrong = {contents[row] for row in unfit}
            failed = [row for row, content in enumerate(contents) if content in wrong]
            raise ScoringError(
                f"The remote scorer {self.called} cannot be sent item {failed[0]}: {error}", rows=failed
            ) from error

    def _is_unfit(self, sample: Sample) -> bool:
        try:
            self._as_sendable([sample])
        except DataError:
            return True
        return False

    def _as_sendable(self, samples: Sequence[Sample]) -> SendableSamples:
        said = self._rendering_settings
        return SendableSamples(samples, self.renderer, pair=said["pair"], open_texts=said["append_eos"] is False)

    def _outcomes(self, samples: SendableSamples, tally: Counter[str]) -> list[Outcome]:
        counted = Counter[str]()
        try:
            return self._calls.outcomes(samples, self._made_fleet, counted)
        finally:
            if samples.tokens is not None and samples.tokens.truncated.any():
                counted["truncated"] = int(samples.tokens.truncated.sum())
            tally.update(counted)
            with self.one_thread:
                self.counts.update(counted)

    def _made_fleet(self) -> Fleet:
        return Fleet(self.urls, self.protocol, self._settings, self.called)

    def _told(self, failed: Mapping[int, str], size: int) -> str:
        """The error message, with each reason once."""
        reasons = Counter(failed.values())
        first = {failed[row]: row for row in sorted(failed, reverse=True)}
        told = [
            f"item {first[reason]}{f' and {times - 1} more' if times > 1 else ''}: {reason}"
            for reason, times in reasons.most_common(3)
        ]
        more = f"; {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
        return f"The remote scorer {self.called} gave no score for {len(failed)} of {size} samples. {'; '.join(told)}{more}"


def _column(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _content(sample: Sample) -> object:
    """A key that is equal for equal samples; the id of the object where it has no JSON form."""
    try:
        return json.dumps(sample_to_json(sample))
    except (TypeError, ValueError):
        return id(sample)
