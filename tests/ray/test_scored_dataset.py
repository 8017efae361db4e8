"""A Ray data set with a column of scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
import rm_plugins_ray
from rm_plugins.data.mapping import RowMapping
from rm_plugins.errors import DataError, SpecError, UnsupportedError
from tests.ray.slow_rewards import vowels

VOWELS = "tests.ray.slow_rewards:vowels"
ROWS = [
    {"prompt": f"Q{number % 5}", "completion": "ae" * (number % 7) + " bad" * (number == 9), "id": number}
    for number in range(20)
]


@pytest.fixture(autouse=True)
def quiet(cluster: Any) -> Iterator[None]:
    import ray.data

    from rm_plugins_ray.data_engine import quiet_data_context

    context = ray.data.DataContext.get_current()
    partitions, context.default_hash_shuffle_parallelism = context.default_hash_shuffle_parallelism, 2
    with quiet_data_context():
        yield
    context.default_hash_shuffle_parallelism = partitions


def dataset(rows: Sequence[Any] = ROWS) -> Any:
    import ray.data

    return ray.data.from_items(list(rows), override_num_blocks=2)


def by_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["id"])


def test_rows_get_scores_and_the_reasons_of_failures() -> None:
    scored = rm_plugins_ray.score(dataset(), VOWELS, workers=1, batch_size=4, on_error="abstain").take_all()
    here = rm.load(vowels).score([rm.Sample(row["prompt"], row["completion"]) for row in ROWS], on_error="abstain")  # type: ignore[arg-type]
    assert [{name: row[name] for name in ROWS[0]} for row in by_id(scored)] == ROWS
    np.testing.assert_allclose(
        [row["score"] if row["score"] is not None else np.nan for row in by_id(scored)], here.values, atol=1e-6
    )
    assert {row["id"]: row["score/error"] for row in scored if row["score/error"]} == {9: "it is bad"}


def test_completions_of_a_prompt_meet() -> None:
    """Wherever their rows are."""
    spec = {"provider": "function", "function": VOWELS, "transform": "rank-in-group", "on_error": "abstain"}
    scored = rm_plugins_ray.score(dataset(), spec, workers=1).take_all()
    here = rm.load(spec).score([rm.Sample(str(row["prompt"]), str(row["completion"])) for row in ROWS])
    values = [np.nan if row["score"] is None else row["score"] for row in by_id(scored)]
    np.testing.assert_allclose(values, here.values, atol=1e-6)
    assert set(scored[0]) == {"prompt", "completion", "id", "score", "score/raw", "score/error"}


def test_rows_of_a_group_meet_too() -> None:
    spec = {
        "provider": "function",
        "function": VOWELS,
        "transform": {"name": "rank-in-group", "group": "q"},
        "on_error": "abstain",
    }
    rows = [{"completion": "a" * n, "q": n % 3} for n in range(9)]
    scored = rm_plugins_ray.score(dataset(rows), spec, workers=1).take_all()
    assert {len(row["completion"]): row["score"] for row in scored} == {n: n // 3 / 2 for n in range(9)}
    both = {"provider": "sum", "members": [spec, {**spec, "transform": "rank-in-group"}]}
    with pytest.raises(UnsupportedError, match=r"by different things \('q', the prompt\)"):
        rm_plugins_ray.score(dataset(rows), both)


def test_lists_and_a_mapping() -> None:
    rows = [{"q": "Q", "answers": ["a", "bad", ""]}, {"q": "P", "answers": ["ae"]}]
    mapping = RowMapping(rename={"q": "prompt", "answers": "completions"})
    scored = rm_plugins_ray.score(
        dataset(rows), VOWELS, mapping=mapping, on_error="abstain", column="reward", workers=1
    ).take_all()
    assert sorted((row["prompt"], row["rewards"]) for row in scored) == [("P", [2.0]), ("Q", [1.0, None, 0.0])]


def test_a_mapping_that_adds_a_column_to_some_rows() -> None:
    rows = [{"a": "x", "b": "ae", "winner": winner} for winner in ("b", "tie")]
    mapping = RowMapping(answers=("a", "b"), winner="winner")
    scored = rm_plugins_ray.score(dataset(rows).repartition(1), VOWELS, mapping=mapping, workers=1).take_all()
    assert [row.get("tie") for row in scored] == [None, True]


def test_a_row_that_has_such_a_column_is_named() -> None:
    from ray.exceptions import RayTaskError

    with pytest.raises(RayTaskError, match="already has a column 'score'"):
        rm_plugins_ray.score(dataset([{"completion": "a", "score": 1.0}]), VOWELS, workers=1).take_all()


def test_nothing_runs_before_it_is_read() -> None:
    rm_plugins_ray.score(dataset([{"text": "a"}]), VOWELS, workers=1)


def test_a_reward_that_learns_is_refused() -> None:
    spec = {"provider": "function", "function": VOWELS, "transform": {"name": "zscore", "running": True}}
    with pytest.raises(UnsupportedError, match=r"learns while it scores .*rm-plugins calibrate"):
        rm_plugins_ray.score(dataset(), spec)


@pytest.mark.parametrize("rows", [[{"completion": "a"}], "rows.jsonl", None], ids=["list", "path", "None"])
def test_what_is_not_a_data_set_is_refused(rows: Any) -> None:
    with pytest.raises(
        DataError, match=r"takes a ray\.data\.Dataset, not .*ray\.data\.from_items, or of files with ray\.data\.read_json"
    ):
        rm_plugins_ray.score(rows, VOWELS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"column": ""}, "column: must be the name of a column, not ''"),
        ({"mapping": {"q": "prompt"}}, "mapping: must be a rm_plugins.data.mapping.RowMapping"),
        ({"batch_size": 0}, "batch_size: must be a positive number of rows, not 0"),
        ({"batch_size": "4"}, "batch_size: must be a positive number of rows, not '4'"),
        ({"on_error": "skip"}, "on_error: must be 'raise' or 'abstain', not 'skip'"),
        ({"workers": 0}, r"workers: must be a positive number of actors, .*not 0"),
        ({"workers": (2, 1)}, r"workers: .*the smallest and the largest number, such as \(1, 8\), not \(2, 1\)"),
        ({"num_gpus": -1}, "num_gpus: must be a number of at least 0, not -1"),
    ],
)
def test_wrong_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        rm_plugins_ray.score(dataset(), VOWELS, **setting)
