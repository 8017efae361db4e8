"""One call of a remote provider: packs samples into requests; each sample gets exactly one score or error."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from rm_plugins.errors import ScoringError
from rm_plugins.protocols.protocol import Answer, Item, ServerFacts
from rm_plugins.protocols.request_ids import request_ids
from rm_plugins.redaction import redact_logs, redacted
from rm_plugins.remote.endpoint import Endpoint
from rm_plugins.remote.fleet import Fleet, Turn
from rm_plugins.remote.request_failure import RequestFailure
from rm_plugins.remote.requests import ANSWER_BYTES, ScoringRequest, packed, read_answer, scoring_request
from rm_plugins.remote.retry import backoff
from rm_plugins.remote.sendable import Sendable

logger = logging.getLogger(__name__)
redact_logs([__name__])

_SEARCHES = 4
"""How many failing requests in a row may be halved while the server answers none. Each halving sends at most two parts with
`_SEARCH_TRIES` each, so a broken server gets at most 16 additional requests."""

_FIRST_SEARCHES = 3
"""The same for servers that had not answered before this call: at most 12 additional requests."""

_SEARCH_TRIES = 2
_RESCORINGS = 2
"""How often samples may be sent again because the model changed during the call."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one sample.

    Args:
        value: The score; None if the server's reward abstained or there is an error.
        details: Named extras.
        error: Why scoring failed; empty if it did not.
        fingerprint: The fingerprint of the model that scored it.
        sent_at: When it was sent; the sample that was sent last was scored by the newest model.
        reply: What a language model replied, for a protocol that asks questions.
    """

    value: float | None = None
    details: Mapping[str, float | None] = field(default_factory=dict)
    error: str = ""
    fingerprint: str = ""
    sent_at: float = 0.0
    reply: Any = None


class ScoringCall:
    """One call, which scores N different samples and counts events in `tally`; runs on the network's thread."""

    def __init__(self, fleet: Fleet, samples: Sendable, tally: Counter[str]) -> None:
        self._fleet = fleet
        self._settings = fleet.settings
        self._samples = samples
        self._tally = tally
        self._outcomes: dict[int, Outcome] = {}
        self._last_failures: dict[int, str] = {}
        self._request_ids = request_ids()
        # Splits that search for rejected samples before the server has accepted any; more would overload it.
        self._splits_left: float = 100 + len(samples) // 4
        # Splits that search for samples that make a server fail; few, so that a broken server is soon left alone.
        was_heard = any(math.isfinite(endpoint.heard_at) for endpoint in fleet.endpoints)
        self._searches_left = _SEARCHES if was_heard else _FIRST_SEARCHES

    async def outcomes(self) -> list[Outcome]:
        """Score all samples; returns one outcome for each, [N].

        Raises:
            UnsupportedError: The server cannot give rewards.
            ScoringError: The server refuses all requests, or different models answer; the samples are not at fault.
        """
        started_at = monotonic()
        try:
            async with self._fleet.in_use():
                try:
                    async with asyncio.timeout(self._settings.deadline):
                        await self._score(range(len(self._samples)))
                        await self._score_by_one_model()
                except TimeoutError:
                    self._give_up_the_rest()
        finally:
            self._tally.update(self._fleet.tally)
            self._fleet.tally.clear()
            self._log_troubles(monotonic() - started_at)
        return [self._outcomes[row] for row in range(len(self._samples))]

    def _give_up_the_rest(self) -> None:
        late = f"no score within the deadline of {self._settings.deadline:g} seconds"
        newest = self._newest()
        for row in range(len(self._samples)):
            outcome = self._outcomes.get(row)
            if outcome is None:
                self._fail([row], f"{late}; last: {self._last_failures.get(row) or self._fleet.troubles}")
            elif outcome.fingerprint not in ("", newest):
                self._fail([row], f"{late} from one model: the model changed from {outcome.fingerprint} to {newest}")

    def _log_troubles(self, seconds: float) -> None:
        """Log one line if something went wrong during the call."""
        troubles = {name: number for name, number in sorted(self._tally.items()) if name != "requests" and number}
        scored = sum(not outcome.error for outcome in self._outcomes.values())
        if troubles:
            logger.info(
                "%s: scored %d of %d samples in %.1f s with %d requests (%s)",
                self._fleet.called,
                scored,
                len(self._samples),
                seconds,
                self._tally["requests"],
                ", ".join(f"{name} {number}" for name, number in troubles.items()),
            )

    def _fail(self, rows: Iterable[int], reason: str) -> None:
        self._outcomes.update(dict.fromkeys(rows, Outcome(error=reason)))

    # --- One model for all ------------------------------------------------------------------------------------------------

    def _newest(self) -> str:
        """The fingerprint of the model that scored the sample that was sent last; empty if no server reports fingerprints."""
        known = [outcome for outcome in self._outcomes.values() if outcome.fingerprint]
        return max(known, key=lambda outcome: outcome.sent_at).fingerprint if known else ""

    async def _score_by_one_model(self) -> None:
        """Send samples again that were scored by another model than the newest one."""
        fleet = self._fleet
        for rescorings in range(_RESCORINGS + 1):
            newest = self._newest()
            older = {
                row: outcome.fingerprint for row, outcome in self._outcomes.items() if outcome.fingerprint not in ("", newest)
            }
            previous = next(iter(older.values()), fleet.fingerprint)
            if newest and previous not in ("", newest) and fleet.fingerprint != newest:
                self._tally["model_changed"] += 1
                logger.warning("%s: the model changed from %s to %s.", fleet.called, previous, newest)
            fleet.fingerprint = newest or fleet.fingerprint
            if not older:
                return
            if rescorings == _RESCORINGS:
                raise ScoringError(
                    f"The remote scorer {fleet.called} answers with different models: {previous} and {newest}. Their scores cannot be "
                    "compared. Serve the same model on all of its servers, or wait until they do."
                )
            for row in older:
                del self._outcomes[row]
            await self._score(sorted(older))

    # --- Requests ---------------------------------------------------------------------------------------------------------

    async def _score(self, rows: Sequence[int]) -> None:
        """Score rows, in requests of about the same size."""
        self._fleet.done(await self._fleet.turn())  # wait until a server is available and its limits are known
        available = [endpoint.facts for endpoint in self._fleet.endpoints if endpoint.facts]
        for facts in available:
            self._warn_of_other_rows(facts)
        most = min((self._most_items(facts) for facts in available), default=1)
        share = math.ceil(len(rows) / max(1, len(available)))
        for facts in available:
            await asyncio.to_thread(self._samples.items, facts)  # tokenize now, in a thread, because it takes long
        await _all(self._deliver(part, self._settings.tries) for part in packed(rows, min(most, share)))

    def _most_items(self, facts: ServerFacts) -> int:
        if not facts.protocol.batches:
            return 1
        limits = [limit for limit in (self._settings.batch_size, facts.max_items) if limit]
        return min(limits, default=facts.protocol.default_max_items)

    def _warn_of_other_rows(self, facts: ServerFacts) -> None:
        """Warn if a model is likely to be sent other token ids than it was trained on."""
        if self._samples.has_other_tokens(facts):
            self._fleet.warn_once(
                ("other tokens", facts.description),
                f"{self._fleet.called}: the `tokenizer` in the spec gives other token ids for a text than that of {facts.description}. "
                "If it belongs to another model, the scores are wrong: name the tokenizer of the model that the server serves.",
            )
        if not self._samples.has_texts:
            return
        if facts.protocol.leaves_texts_bare and not self._samples.open_texts:
            self._fleet.warn_once(
                ("bare texts", facts.description),
                f"{self._fleet.called}: texts are sent unchanged to {facts.description}: the client adds no special tokens and no EOS, and "
                "the server is not known to add them. Most models then give other scores than with `rm.load`. Name the model's `tokenizer` "
                "in the spec of the remote provider, or set `append_eos: false` there if texts must be sent unchanged.",
            )
        if facts.closes_texts is not False:
            return
        if facts.protocol.takes_only_pairs:
            self._fleet.warn_once(
                ("two texts", facts.description),
                f"{self._fleet.called}: {facts.description} serves a decoder, and tokenizes prompts and completions separately. At their "
                "boundary, the token ids may differ from those of the joined text, which `rm.load` scores. Use another endpoint; or name "
                "the model's `tokenizer` in the spec of the remote provider, so that samples that differ are refused.",
            )
        if not self._samples.open_texts:
            self._fleet.warn_once(
                ("open texts", facts.description),
                f"{self._fleet.called}: neither {facts.description} nor the client ends texts with EOS. If the model was trained with EOS "
                "at the end of texts, as with TRL, OpenRLHF and `rm-plugins train`, scores differ from those of `rm.load`. Name its "
                "`tokenizer` in the spec of the remote provider, or set `append_eos: false` there if it was trained without EOS.",
            )

    async def _deliver(self, rows: Sequence[int], tries: int) -> None:
        """Score the rows of one request, with retries and splits."""
        request_id = next(self._request_ids)  # retries keep the id, because it is the same request
        failures = lost = 0
        avoid: Endpoint | None = None
        while True:
            turn = await self._fleet.turn(avoid)
            try:
                outcomes = await self._answered_in_time(rows, request_id, turn)
                self._outcomes.update(outcomes)
                if any(not outcome.error for outcome in outcomes.values()):
                    self._splits_left, self._searches_left = math.inf, _SEARCHES
                return
            except RequestFailure as error:
                failure = error
            finally:
                self._fleet.done(turn)
            reason = f"{turn.endpoint.url}: {failure}"
            match failure.cause:
                case "refused":
                    self._fleet.leave_out(turn.endpoint, ScoringError(str(failure)))
                    continue
                case "too-large" if len(rows) > 1:
                    return await self._split(rows, self._most_items(turn.facts), tries)
                case "rejected" if len(rows) > 1 and self._splits_left > 0:
                    self._splits_left -= 2
                    return await self._split(rows, len(rows), tries)
                case "too-large" | "rejected":
                    unknown = (
                        f" (at least one of {len(rows)} samples; too many requests were rejected to find out which)"
                        if len(rows) > 1
                        else ""
                    )
                    return self._fail(rows, reason + unknown)
                case "connection":
                    lost += 1
                case _:
                    failures += 1
            if failures >= tries:
                if len(rows) > 1 and failure.cause in ("retry", "bad-answer") and self._searches_left > 0:
                    self._searches_left -= 1  # some servers fail a whole request because of one item
                    return await self._split(rows, len(rows), min(tries, _SEARCH_TRIES))
                return self._fail(rows, f"{reason} (tried {failures} times)")
            self._tally["retries"] += 1
            self._last_failures.update(dict.fromkeys(rows, reason))
            avoid = turn.endpoint
            times = lost if failure.cause == "connection" else failures
            await asyncio.sleep(backoff(times, self._fleet.random.random()))

    async def _split(self, rows: Sequence[int], most: int, tries: int) -> None:
        self._tally["splits"] += 1
        await _all(self._deliver(part, tries) for part in packed(rows, min(most, math.ceil(len(rows) / 2))))

    # --- One request ------------------------------------------------------------------------------------------------------

    async def _answered_in_time(self, rows: Sequence[int], request_id: str, turn: Turn) -> dict[int, Outcome]:
        """The outcomes, from the first answer, of the request or of a second one that is sent if the first takes too long."""
        if self._settings.hedge_after is None:
            return await self._answered(rows, request_id, turn)
        first = asyncio.ensure_future(self._answered(rows, request_id, turn))
        running = {first}
        try:
            done, _ = await asyncio.wait(running, timeout=self._settings.hedge_after)
            sent = asyncio.Event()
            if not done:
                running.add(asyncio.ensure_future(self._answered_by_another(rows, request_id, turn.endpoint, sent)))
            while running and not (
                first.done() and not sent.is_set()
            ):  # a second request that is not sent yet may be waiting for the turn of the first
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        return task.result()
            return first.result()
        finally:
            await _cancelled([first, *running])

    async def _answered_by_another(
        self, rows: Sequence[int], request_id: str, than: Endpoint, sent: asyncio.Event
    ) -> dict[int, Outcome]:
        turn = await self._fleet.turn(avoid=than)
        try:
            sent.set()
            self._tally["hedges"] += 1
            return await self._answered(rows, request_id, turn)
        finally:
            self._fleet.done(turn)

    async def _answered(self, rows: Sequence[int], request_id: str, turn: Turn) -> dict[int, Outcome]:
        """The outcomes of one request to one server.

        Raises:
            RequestFailure: The request failed.
            ScoringError: The server's model does not have the fingerprint in the spec.
        """
        most = self._most_items(turn.facts)
        if len(rows) > most:
            raise RequestFailure("too-large", f"it takes at most {most} samples per request")
        items = self._samples.items(turn.facts)
        prepared = scoring_request(rows, items, turn.facts, request_id)
        outcomes = {row: Outcome(error=reason) for row, reason in prepared.unsendable.items()}
        if prepared.request is None:
            return outcomes
        sent_at = monotonic()
        self._tally["requests"] += 1
        try:
            answer = await self._answer(turn, prepared, [items[row] for row in prepared.rows], request_id)
        except RequestFailure as failure:
            self._fleet.noted(turn.endpoint, failure, sent_at, self._tally, "retrying")
            raise
        turn.endpoint.answered(sent_at, monotonic())
        self._check_fingerprint(answer.fingerprint, turn.endpoint)
        for place, row in enumerate(prepared.rows):
            details = {name: column[place] for name, column in answer.details.items()}
            error = redacted(answer.errors.get(place, ""))
            reply = answer.replies[place] if answer.replies else None
            outcomes[row] = Outcome(answer.values[place], details, error, answer.fingerprint, sent_at, reply)
        return outcomes

    async def _answer(self, turn: Turn, prepared: ScoringRequest, items: Sequence[Item], request_id: str) -> Answer:
        """A valid answer to a request; the request is repeated if the answer equals that of another request.

        Raises:
            RequestFailure: The request failed, or the answer belongs to another request.
        """
        assert prepared.request is not None
        protocol, repeated = turn.facts.protocol, self._fleet.repeated
        most = ANSWER_BYTES + protocol.answer_bytes * len(prepared.rows)
        doubted: bytes | None = None
        while True:
            response = await self._fleet.exchange(turn.endpoint, prepared.request, prepared.body, request_id, most=most)
            if not 200 <= response.status < 300:
                raise self._fleet.failure_of(turn.endpoint, protocol, prepared.request, response, len(prepared.rows))
            answer = read_answer(response, items, turn.facts, request_id)
            if response.body == doubted:
                repeated.believe(response.body)
                return answer
            if doubted is not None:
                raise RequestFailure(
                    "bad-answer", "it gave the answer of another request, and a different one when asked again"
                )
            if not repeated.is_doubtful(prepared.body or b"", response.body):
                return answer
            doubted = response.body
            self._tally.update(("requests", "doubts"))

    def _check_fingerprint(self, served: str, endpoint: Endpoint) -> None:
        wanted = self._settings.fingerprint
        if wanted is not None and served != wanted:
            has = f"serves the model with the fingerprint {served!r}" if served else "does not report a fingerprint"
            raise ScoringError(
                f"The spec of the remote scorer {self._fleet.called} requires the model with the fingerprint {wanted!r}, but "
                f"{endpoint.url} {has}. Serve that model, or change `fingerprint` in the spec."
            )


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all coroutines concurrently; when one fails, cancel the others."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
