"""One call of a remote provider: its samples packed into requests, and each of them answered exactly once or failed."""

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
from rm_plugins.remote.items import SendableSamples
from rm_plugins.remote.request_failure import RequestFailure
from rm_plugins.remote.requests import ANSWER_BYTES, ScoringRequest, packed, read_answer, scoring_request
from rm_plugins.remote.retry import backoff

logger = logging.getLogger(__name__)
redact_logs([__name__])

_SEARCHES = 4
"""How often in a row requests that a server always fails at are halved, without one that it answers among them. Each halving costs at most
two parts with `_SEARCH_TRIES` each, so a server that has broken down gets at most 16 requests more than it would without."""

_FIRST_SEARCHES = 3
"""The same for servers of which nothing was heard before this call: at most 12 requests more."""

_SEARCH_TRIES = 2
_RESCORINGS = 2
"""How often samples may be sent again because the model changed meanwhile."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a sample.

    Args:
        value: The score; None where the server's reward abstained, or there is an error.
        details: Named extras.
        error: Why there is no score, where that is a failure.
        fingerprint: Of the model that scored it.
        sent_at: When it was sent, for what was sent last is of the newest model.
    """

    value: float | None = None
    details: Mapping[str, float | None] = field(default_factory=dict)
    error: str = ""
    fingerprint: str = ""
    sent_at: float = 0.0


class ScoringCall:
    """One call, which scores N different samples and counts in `tally` what happened; runs on the network's thread."""

    def __init__(self, fleet: Fleet, samples: SendableSamples, tally: Counter[str]) -> None:
        self._fleet = fleet
        self._settings = fleet.settings
        self._samples = samples
        self._tally = tally
        self._outcomes: dict[int, Outcome] = {}
        self._last_failures: dict[int, str] = {}
        self._request_ids = request_ids()
        # To find what a server rejects that has taken nothing yet; more would be an attack on it.
        self._splits_left: float = 100 + len(samples) // 4
        # To find what a server fails at; one that has broken down is left alone soon.
        was_heard = any(math.isfinite(endpoint.heard_at) for endpoint in fleet.endpoints)
        self._searches_left = _SEARCHES if was_heard else _FIRST_SEARCHES

    async def outcomes(self) -> list[Outcome]:
        """Have everything scored; one outcome for each sample, [N].

        Raises:
            UnsupportedError: The server cannot give rewards.
            ScoringError: The server refuses requests as such, or models disagree; the samples are not at fault.
        """
        begun = monotonic()
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
            self._tell(monotonic() - begun)
        return [self._outcomes[row] for row in range(len(self._samples))]

    def _give_up_the_rest(self) -> None:
        late = f"no score within the deadline of {self._settings.deadline:g} seconds"
        newest = self._newest()
        for row in range(len(self._samples)):
            outcome = self._outcomes.get(row)
            if outcome is None:
                self._fail([row], f"{late}; last: {self._last_failures.get(row) or self._fleet.troubles}")
            elif outcome.fingerprint not in ("", newest):
                self._fail([row], f"{late} by one model: it changed from {outcome.fingerprint} to {newest}")

    def _tell(self, seconds: float) -> None:
        """One line for a call in which something went wrong."""
        troubles = {name: number for name, number in sorted(self._tally.items()) if name != "requests" and number}
        scored = sum(not outcome.error for outcome in self._outcomes.values())
        if troubles:
            logger.info(
                "%s: %d of %d samples scored in %.1f s by %d requests (%s)",
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
        """The fingerprint of the model that scored what was sent last; empty where no server names it."""
        told = [outcome for outcome in self._outcomes.values() if outcome.fingerprint]
        return max(told, key=lambda outcome: outcome.sent_at).fingerprint if told else ""

    async def _score_by_one_model(self) -> None:
        """Send again what another model scored than the one that scores now."""
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
                    f"Different models answer for the remote scorer {fleet.called}: {previous} and {newest}. Their scores cannot be "
                    "compared. Have all of its servers serve the same model, or wait until they do."
                )
            for row in older:
                del self._outcomes[row]
            await self._score(sorted(older))

    # --- Requests ---------------------------------------------------------------------------------------------------------

    async def _score(self, rows: Sequence[int]) -> None:
        """Have rows scored, in requests of about the same size."""
        self._fleet.done(await self._fleet.turn())  # some server is there, and has said how much it takes
        there = [endpoint.facts for endpoint in self._fleet.endpoints if endpoint.facts]
        for facts in there:
            self._warn_of_other_rows(facts)
        most = min((self._most_items(facts) for facts in there), default=1)
        share = math.ceil(len(rows) / max(1, len(there)))
        for facts in there:
            await asyncio.to_thread(self._samples.items, facts)  # tokenizing takes long; from here on they are at hand
        await _all(self._deliver(part, self._settings.tries) for part in packed(rows, min(most, share)))

    def _most_items(self, facts: ServerFacts) -> int:
        if not facts.protocol.batches:
            return 1
        named = [limit for limit in (self._settings.batch_size, facts.max_items) if limit]
        return min(named, default=facts.protocol.default_max_items)

    def _warn_of_other_rows(self, facts: ServerFacts) -> None:
        """Say where a model is likely to be sent other token ids than it was trained on."""
        if self._samples.has_other_tokens(facts):
            self._fleet.warn_once(
                ("other tokens", facts.description),
                f"{self._fleet.called}: the `tokenizer` in the spec makes other token ids of a text than that of {facts.description}. "
                "If it is another model's, the scores are wrong: name the tokenizer of the model that the server has.",
            )
        if not self._samples.has_texts:
            return
        if facts.protocol.leaves_texts_bare and not self._samples.open_texts:
            self._fleet.warn_once(
                ("bare texts", facts.description),
                f"{self._fleet.called}: {facts.description} is sent texts as they are: nothing here adds special tokens or EOS to them, "
                "and the server is not known to. For most models that is another score than that of `rm.load`. Name the model's "
                "`tokenizer` in the spec of the remote provider, or set `append_eos: false` there if texts are to be sent as they are.",
            )
        if facts.closes_texts is not False:
            return
        if facts.protocol.takes_only_pairs:
            self._fleet.warn_once(
                ("two texts", facts.description),
                f"{self._fleet.called}: {facts.description} serves a decoder, and tokenizes prompts and completions apart. Where they "
                "meet, their token ids may differ from those of the joined text, which `rm.load` scores. Use another endpoint; or name the "
                "model's `tokenizer` in the spec of the remote provider, for samples that differ to be refused.",
            )
        if not self._samples.open_texts:
            self._fleet.warn_once(
                ("open texts", facts.description),
                f"{self._fleet.called}: {facts.description} does not end texts with EOS, and nothing here does. The scores of a model that "
                "was trained on texts with EOS at their ends, as TRL, OpenRLHF and `rm-plugins train` have them, differ from those of "
                "`rm.load`. Name its `tokenizer` in the spec of the remote provider, or set `append_eos: false` there if texts have none.",
            )

    async def _deliver(self, rows: Sequence[int], tries: int) -> None:
        """Have the rows of one request scored, by as many requests as that takes."""
        request_id = next(self._request_ids)  # the same each time: it is the same request
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
                        f" (at least one of {len(rows)} samples; too many were rejected to find out)" if len(rows) > 1 else ""
                    )
                    return self._fail(rows, reason + unknown)
                case "connection":
                    lost += 1
                case _:
                    failures += 1
            if failures >= tries:
                if len(rows) > 1 and failure.cause in ("retry", "bad-answer") and self._searches_left > 0:
                    self._searches_left -= 1  # some servers fail at a whole request for one item of it
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
        """The outcomes, from a second request if the first one takes too long; the other of the two is given up."""
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
            ):  # one that waits for its turn may wait for the first one's
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
        """The outcomes that one server gives by one request.

        Raises:
            RequestFailure: There are none.
            ScoringError: Its model is not the one that the spec names.
        """
        most = self._most_items(turn.facts)
        if len(rows) > most:
            raise RequestFailure("too-large", f"it takes {most} samples at a time")
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
            self._fleet.noted(turn.endpoint, failure, sent_at, self._tally, "tried again")
            raise
        turn.endpoint.answered(sent_at, monotonic())
        self._check_fingerprint(answer.fingerprint, turn.endpoint)
        for place, row in enumerate(prepared.rows):
            details = {name: column[place] for name, column in answer.details.items()}
            error = redacted(answer.errors.get(place, ""))
            outcomes[row] = Outcome(answer.values[place], details, error, answer.fingerprint, sent_at)
        return outcomes

    async def _answer(self, turn: Turn, prepared: ScoringRequest, items: Sequence[Item], request_id: str) -> Answer:
        """The good answer to a request, which is asked for again where it repeats another one's.

        Raises:
            RequestFailure: There is none, or it is another one's.
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
                raise RequestFailure("bad-answer", "an answer came that was another request's, and then a different one")
            if not repeated.is_doubtful(prepared.body or b"", response.body):
                return answer
            doubted = response.body
            self._tally.update(("requests", "doubts"))

    def _check_fingerprint(self, served: str, endpoint: Endpoint) -> None:
        wanted = self._settings.fingerprint
        if wanted is not None and served != wanted:
            has = f"serves the model with the fingerprint {served!r}" if served else "does not say which model it serves"
            raise ScoringError(
                f"The remote scorer {self._fleet.called} must be the model with the fingerprint {wanted!r}, as the spec says, and "
                f"{endpoint.url} {has}."
            )


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Have all done at once; when one of them fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
