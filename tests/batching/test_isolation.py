"""Which request of a batch is to blame for its failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.batching.isolation import score_requests
from rm_plugins.errors import DataError, ScoringError
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.server.service import _public_message


class Poisoned(rm.Provider):
    """Scores a text's length; fails at poison, naming the rows or not."""

    name = "poisoned"

    def __init__(self, *, names_rows: bool = False, error: type[Exception] = RuntimeError, first_only: bool = False) -> None:
        self.names_rows = names_rows
        self.error = error
        self.first_only = first_only
        self.batches: list[int] = []

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        self.batches.append(len(samples))
        wrong = [row for row, sample in enumerate(samples) if sample.completion == "poison"]
        if wrong and self.names_rows:
            raise ScoringError("poison at /srv/secret", rows=wrong[:1] if self.first_only else wrong)
        if wrong:
            raise self.error("poison at /srv/secret")
        lengths = np.array([float(len(sample.completion)) for sample in samples])
        return Scores(lengths, {"half": lengths / 2})


def requests(*texts: str) -> list[list[Sample]]:
    """Requests of the words of each text."""
    return [[Sample("", word) for word in text.split()] for text in texts]


def isolated(provider: rm.Provider, *texts: str, **settings: Any) -> list[Scores]:
    return score_requests(provider, requests(*texts), [f"request {number}" for number in range(len(texts))], **settings)


KINDS: dict[str, dict[str, Any]] = {
    "rows": {"names_rows": True},
    "one row": {"names_rows": True, "first_only": True},
    "no rows": {},
    "of the data": {"error": DataError},
}


class TestIsolation:
    @pytest.mark.parametrize("kind", KINDS)
    @given(words=st.lists(st.lists(st.sampled_from(["a", "bb", "poison"]), min_size=1, max_size=5), min_size=1, max_size=8))
    def test_what_fails_is_what_is_poisoned(self, kind: str, words: list[list[str]]) -> None:
        provider = Poisoned(**KINDS[kind])
        for request, found in zip(words, isolated(provider, *map(" ".join, words)), strict=True):
            poisoned = [row for row, word in enumerate(request) if word == "poison"]
            assert sorted(found.errors) == poisoned
            expected = [np.nan if word == "poison" else len(word) for word in request]
            np.testing.assert_array_equal(found.values, expected)
            if len(poisoned) < len(request):
                np.testing.assert_array_equal(found.details["half"], np.array(expected) / 2)

    def test_all_is_one_batch_while_nothing_fails(self) -> None:
        provider = Poisoned()
        isolated(provider, "a b", "c", "d e f")
        assert provider.batches == [6]

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_poisoned_sample_costs_the_others_little(self, kind: str) -> None:
        provider = Poisoned(**KINDS[kind])
        isolated(provider, *["a b c d"] * 63, "a poison c d")
        assert sum(provider.batches) <= 4 * 256
        assert len(provider.batches) <= 20

    def test_a_client_is_public_message_of_its_data_and_not_of_the_server(self, caplog: pytest.LogCaptureFixture) -> None:
        (broken,) = isolated(Poisoned(), "poison")
        assert _public_message(broken.errors[0]) == "the reward failed (ScoringError); see the server's log for the reason"
        assert "request 0" in caplog.text
        assert "/srv/secret" in caplog.text
        (wrong,) = isolated(Poisoned(error=DataError), "poison")
        assert _public_message(wrong.errors[0]) == "poison at /srv/secret"  # errors of the data are about what the client sent

    def test_rows_that_depend_on_each_other_are_not_taken_apart(self) -> None:
        provider = Poisoned()
        (found,) = isolated(provider, "a poison b", by_row=False)
        assert sorted(found.errors) == [0, 1, 2]
        assert provider.batches == [3]

    def test_a_failure_that_names_everybodys_rows_is_nobodys_until_looked_at(self) -> None:
        class Blaming(Poisoned):
            def score_batch(self, samples: Sequence[Sample]) -> Scores:
                try:
                    return super().score_batch(samples)
                except RuntimeError as error:
                    raise ScoringError("all of them", rows=range(len(samples))) from error

        found = isolated(Blaming(), "a", "poison", "b", "c")
        assert [sorted(one.errors) for one in found] == [[], [0], [], []]

    @pytest.mark.parametrize("policy", ["abstain", {"fallback": {"provider": "constant", "value": -7.0}}])
    def test_what_makes_up_for_ones_failure_leaves_the_others_their_scores(self, policy: Any) -> None:
        def length(samples: Sequence[Sample]) -> list[float]:
            if any(sample.completion == "poison" for sample in samples):
                raise RuntimeError("no row is named")
            return [float(len(str(sample.completion))) for sample in samples]

        reward = rm.load({"provider": "function", "function": length, "on_error": policy})
        poisoned, sound = score_requests(reward, [[Sample("", "poison")], [Sample("", "a"), Sample("", "bb")]], ["p", "s"])
        assert sound.values.tolist() == [1.0, 2.0]
        assert poisoned.values[0] != 6.0

    def test_a_function_is_called_as_if_each_request_were_the_only_one(self) -> None:
        def names(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
            return [float(len(columns))] * len(prompts)

        reward = rm.load({"provider": "function", "function": names})
        requests = [[Sample("", "a", {"answer": "4"})], [Sample("", "b")], [Sample("", "c", {"answer": "5"})]]
        alone = [score_requests(reward, [request], ["alone"])[0].values.tolist() for request in requests]
        together = score_requests(reward, requests, ["1", "2", "3"])
        assert [found.values.tolist() for found in together] == alone
        assert alone[0] != alone[1]

    def test_a_reward_that_ends_programs_ends_no_server(self) -> None:
        def leave(samples: Sequence[Sample]) -> list[float]:
            if any(sample.completion == "exit()" for sample in samples):
                raise SystemExit
            return [1.0] * len(samples)

        bad, good = score_requests(rm.load(leave), [[Sample("", "exit()")], [Sample("", "x")]], ["bad", "good"])
        assert bad.errors and not good.errors
        assert good.values.tolist() == [1.0]

    def test_what_the_reward_makes_of_failures_itself_is_left_so(self) -> None:
        provider = Poisoned(names_rows=True)
        provider.on_error = "abstain"
        (first, second) = isolated(provider, "a poison", "b")
        assert first.errors == {}
        assert np.isnan(first.values).tolist() == [False, True]
        assert second.values.tolist() == [1.0]
