"""The score cache: what was computed before is found again, by the same model only, from several processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rm_plugins as rm
from rm_plugins.engine.score_cache import MEMORY, ScoreCache, model_fingerprint
from rm_plugins.errors import ScoringError
from tests.conftest import MakeFolder

ROWS = [[5, 6, 7], [5, 6], [5, 6, 7], [9]]
OUTPUTS = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.0]])


@pytest.fixture(params=[MEMORY, "file"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return MEMORY if request.param == MEMORY else str(tmp_path / "new" / "scores.sqlite")


def unknown(cache: ScoreCache, rows: list[list[int]] = ROWS) -> tuple[list[int], Any]:
    outputs = np.full((len(rows), 2), np.nan)
    return cache.read(rows, outputs).tolist(), outputs


def test_what_was_written_is_read(where: str) -> None:
    cache = ScoreCache(where, "a model")
    assert unknown(cache)[0] == [0, 1, 2, 3]
    cache.write(ROWS[:2], OUTPUTS[:2])
    missing, outputs = unknown(cache)
    assert missing == [3]
    np.testing.assert_array_equal(outputs[:3], OUTPUTS[:3])
    assert np.isnan(outputs[3]).all()


def test_a_file_outlives_its_provider_and_knows_the_model(tmp_path: Path) -> None:
    file = str(tmp_path / "scores.sqlite")
    ScoreCache(file, "a model").write(ROWS, OUTPUTS)
    missing, outputs = unknown(ScoreCache(file, "a model"))
    assert missing == []
    np.testing.assert_array_equal(outputs, OUTPUTS)
    assert unknown(ScoreCache(file, "another model"))[0] == [0, 1, 2, 3]


def test_more_rows_than_a_query_takes(tmp_path: Path) -> None:
    rows = [[row] for row in range(1_234)]
    outputs = np.arange(2_468.0).reshape(-1, 2)
    ScoreCache(str(tmp_path / "scores.sqlite"), "a model").write(rows, outputs)
    missing, read = unknown(ScoreCache(str(tmp_path / "scores.sqlite"), "a model"), rows)
    assert missing == []
    np.testing.assert_array_equal(read, outputs)


def test_the_memory_keeps_what_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rm_plugins.engine.score_cache._ENTRIES_IN_MEMORY", 2)
    cache = ScoreCache(MEMORY, "a model")
    cache.write([[1], [2]], OUTPUTS[:2])
    unknown(cache, [[1]])
    cache.write([[3]], OUTPUTS[:1])
    assert unknown(cache, [[1], [2], [3]])[0] == [1]


def test_a_score_that_is_no_number_is_not_kept(where: str) -> None:
    cache = ScoreCache(where, "a model")
    cache.write([[1], [2]], np.array([[np.nan, 1.0], [2.0, np.inf]]))
    assert unknown(cache, [[1], [2]])[0] == [0, 1]


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, " * 100)
    with pytest.raises(ScoringError, match=r"notes\.txt cannot be used: file is not a database"):
        ScoreCache(str(file), "a model")
    assert file.read_text().startswith("not a database")


def test_processes_write_into_one_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "scores.sqlite"
    script = (
        "import sys, numpy as np\nfrom rm_plugins.engine.score_cache import ScoreCache\n"
        "for start in range(int(sys.argv[2]), 400, 4):\n"
        "    cache = ScoreCache(sys.argv[1], 'a model')\n"
        "    rows = [[start, row] for row in range(20)]\n"
        "    cache.write(rows, np.array([[float(start), float(row)] for _, row in rows]))\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(file), str(number)]) for number in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0, 0]
    rows = [[start, row] for start in range(400) for row in range(20)]
    missing, outputs = unknown(ScoreCache(str(file), "a model"), rows)
    assert missing == []
    np.testing.assert_array_equal(outputs, rows)


class TestInAProvider:
    SAMPLES = (rm.Sample("Name a colour.", " blue"), rm.Sample("Name a colour.", " two"), rm.Sample("Count.", " one"))

    def test_scores_come_back_without_the_model(self, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folder = tiny_decoder()
        expected = rm.load(folder).score(self.SAMPLES).values
        for cached in (0, 3):  # the second time in a provider of its own, from the file
            provider: Any = rm.load(folder, cache=str(tmp_path / "scores.sqlite"))
            scores = provider.score(self.SAMPLES)
            np.testing.assert_array_equal(scores.values, expected)
            assert scores.metadata["cached"] == cached
            assert provider.counts["cached"] == cached
            assert (scores.metadata["unique_tokens"] == 0) is (cached == 3)

    def test_only_new_samples_are_computed(self, tiny_decoder: MakeFolder) -> None:
        folder = tiny_decoder()
        provider = rm.load(folder, cache="memory")
        provider.score(self.SAMPLES[:2])
        scores = provider.score(self.SAMPLES)
        assert scores.metadata["cached"] == 2
        np.testing.assert_allclose(scores.values, rm.load(folder).score(self.SAMPLES).values, atol=1e-5)

    @pytest.mark.parametrize("change", ["weights", "dtype", "rendering"])
    def test_another_reward_never_gets_these_scores(self, change: str, tiny_decoder: MakeFolder, tmp_path: Path) -> None:
        folder = tiny_decoder()
        file = str(tmp_path / "scores.sqlite")
        rm.load(folder, cache=file).score(self.SAMPLES)
        changes: dict[str, dict[str, Any]] = {"dtype": {"dtype": "bfloat16"}, "rendering": {"append_eos": False}}
        settings = changes.get(change, {})
        if change == "weights":
            provider: Any = rm.load(folder)
            with torch.no_grad():
                provider.model.score.weight[0, 0] += 1e-3
            provider.model.save_pretrained(folder)
        scores = rm.load(folder, cache=file, **settings).score(self.SAMPLES)
        assert scores.metadata["cached"] == 0
        np.testing.assert_array_equal(scores.values, rm.load(folder, **settings).score(self.SAMPLES).values)

    def test_the_fingerprint_is_the_model(self, tiny_decoder: MakeFolder) -> None:
        one, other = (rm.load(tiny_decoder()) for _ in range(2))
        assert model_fingerprint(one.model) == model_fingerprint(other.model)  # type: ignore[attr-defined]
        one.model.config.hidden_act = "gelu"  # type: ignore[attr-defined]
        assert model_fingerprint(one.model) != model_fingerprint(other.model)  # type: ignore[attr-defined]
