"""The score cache: what was computed before is found again, by the same model only, from several processes."""

from __future__ import annotations

import errno
import json
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def stored(file: Path) -> bytes:
    """The bytes of a cache with the entries `ROWS`, all in its own file."""
    ScoreCache(str(file), "a model").write(ROWS, OUTPUTS)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return file.read_bytes()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return stored(tmp_path_factory.mktemp("cache") / "scores.sqlite")


class TestDamage:
    """A byte that is another one costs time and changes no score."""

    def check(self, damaged: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "scores.sqlite"
            file.write_bytes(damaged)
            with suppress(ScoringError):  # the head of the file no longer says that it is a database
                cache = ScoreCache(str(file), "a model")
                missing, outputs = unknown(cache)
                known = [row for row in range(len(ROWS)) if row not in missing]
                np.testing.assert_array_equal(outputs[known], OUTPUTS[known])
                cache.write(ROWS, OUTPUTS)
                assert unknown(cache)[0] == []
                with suppress(ScoringError):
                    missing, outputs = unknown(ScoreCache(str(file), "a model"))
                    known = [row for row in range(len(ROWS)) if row not in missing]
                    np.testing.assert_array_equal(outputs[known], OUTPUTS[known])

    def test_every_bit_of_every_score(self, sound: bytes) -> None:
        for value in OUTPUTS[-1]:
            place = sound.index(value.tobytes())
            for bit in range(64):
                damaged = bytearray(sound)
                damaged[place + bit // 8] ^= 1 << bit % 8
                self.check(bytes(damaged))

    @settings(max_examples=60)
    @given(damage=st.data())
    def test_bytes_anywhere(self, damage: st.DataObject, sound: bytes) -> None:
        damaged = bytearray(sound)
        start = damage.draw(st.integers(0, len(sound) - 1))
        for place, byte in enumerate(damage.draw(st.binary(min_size=1, max_size=64)), start):
            damaged[place % len(sound)] = byte
        self.check(bytes(damaged))

    @settings(max_examples=20)
    @given(length=st.integers(0, 8192))
    def test_a_file_cut_short(self, length: int, sound: bytes) -> None:
        self.check(sound[:length])

    def test_an_entry_of_another_row_or_width(self, tmp_path: Path) -> None:
        file = tmp_path / "scores.sqlite"
        stored(file)
        with closing(sqlite3.connect(file)) as connection, connection:
            first, second, _ = connection.execute("SELECT outputs FROM scores").fetchall()
            connection.execute("UPDATE scores SET outputs = ? WHERE outputs = ?", [*second, *first])
        assert len(unknown(ScoreCache(str(file), "a model"))[0]) in (1, 2)  # one entry, which may be that of two rows
        assert ScoreCache(str(file), "a model").read(ROWS, np.full((4, 3), np.nan)).tolist() == [0, 1, 2, 3]

    def test_it_is_said_once_and_mended(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = tmp_path / "scores.sqlite"
        damaged = bytearray(stored(file))
        for value in (1.0, 3.0):
            damaged[damaged.index(np.float64(value).tobytes())] ^= 1
        file.write_bytes(damaged)
        cache = ScoreCache(str(file), "a model")
        assert [unknown(cache)[0], unknown(cache)[0]] == [[0, 1, 2], [0, 1, 2]]
        assert [record.getMessage() for record in caplog.records] == [
            f"The score cache {file} is damaged: entries with a wrong checksum are recomputed."
        ]
        cache.write(ROWS, OUTPUTS)
        assert unknown(ScoreCache(str(file), "a model"))[0] == []


class TestStepsAside:
    """A file that cannot be used ends nothing that does not need it, and is warned of once."""

    def use(self, cache: ScoreCache, caplog: pytest.LogCaptureFixture, reason: str) -> None:
        for _ in range(2):
            outputs = np.full((4, 2), np.nan)
            cache.read(ROWS, outputs)
            cache.write(ROWS, OUTPUTS)
        missing, outputs = unknown(cache)
        assert missing == []
        np.testing.assert_array_equal(outputs, OUTPUTS)
        (message,) = [record.getMessage() for record in caplog.records]
        assert reason in message
        assert message.endswith("Scores are computed, and cached in memory only.")

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rm_plugins.engine.score_cache._BUSY_SECONDS", 0.05)

    @pytest.mark.parametrize("when", ["before", "later"])
    @pytest.mark.parametrize("lock", ["EXCLUSIVE", "IMMEDIATE"])
    def test_locked(self, when: str, lock: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        file = tmp_path / "scores.sqlite"
        cache = ScoreCache(str(file), "a model")
        with closing(sqlite3.connect(file)) as other:
            other.execute(f"BEGIN {lock}")
            self.use(ScoreCache(str(file), "a model") if when == "before" else cache, caplog, "locked")

    def test_read_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        file = tmp_path / "scores.sqlite"
        cache = ScoreCache(str(file), "a model")
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda name, **settings: connect(f"file:{name}?mode=ro", uri=True, **settings))
        self.use(cache, caplog, "readonly database")

    @pytest.mark.parametrize("reason", ["Read-only file system", "Permission denied", "No space left on device"])
    def test_a_folder_that_takes_no_file(
        self, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        number = {"Read-only file system": errno.EROFS, "Permission denied": errno.EACCES}.get(reason, errno.ENOSPC)

        def refuse(**arguments: Any) -> Any:
            raise OSError(number, reason)

        monkeypatch.setattr(tempfile, "mkstemp", refuse)
        self.use(ScoreCache(str(tmp_path / "scores.sqlite"), "a model"), caplog, reason)

    def test_full(self, tmp_path: Path) -> None:
        script = (
            "import resource, sys, numpy as np\nfrom rm_plugins.engine.score_cache import ScoreCache\n"
            "cache = ScoreCache(sys.argv[1], 'a model')\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
            "rows = [[row] for row in range(5_000)]\nvalues = np.arange(10_000.0).reshape(-1, 2)\n"
            "for _ in range(2):\n    cache.write(rows, values)\n"
            "outputs = np.zeros((5_000, 2))\nassert len(cache.read(rows, outputs)) == 0\nassert (outputs == values).all()\n"
        )
        pytest.importorskip("resource")
        ended = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "scores.sqlite")], capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr.count("cannot be used") == 1

    def test_deleted_while_it_is_used(self, tmp_path: Path) -> None:
        file = tmp_path / "scores.sqlite"
        cache = ScoreCache(str(file), "a model")
        cache.write(ROWS[:2], OUTPUTS[:2])
        file.unlink()
        assert unknown(cache)[0] == [3]
        cache.write(ROWS, OUTPUTS)
        assert unknown(ScoreCache(str(file), "a model"))[0] == []

    def test_its_folder_is_deleted_while_it_is_used(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        cache = ScoreCache(str(tmp_path / "new" / "scores.sqlite"), "a model")
        shutil.rmtree(tmp_path / "new")
        self.use(cache, caplog, "unable to open")


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

    def test_the_code_of_a_checkpoint_is_the_model_too(
        self, tiny_decoder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = (
            "from transformers import Qwen2ForSequenceClassification\n\n\n"
            "class Own(Qwen2ForSequenceClassification):\n"
            "    def __init__(self, config):\n        super().__init__(config)\n"
            "        self.score.register_forward_hook(lambda m, i, o: o {})\n"
        )
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        values: list[Any] = []
        for number, ending in enumerate(("* 2", "* 3")):
            folder = tiny_decoder()
            config = json.loads((folder / "config.json").read_text())
            config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_own.Own"}
            (folder / "config.json").write_text(json.dumps(config))
            (folder / "modeling_own.py").write_text(code.format(ending))
            provider: Any = rm.load(folder, cache=str(tmp_path / "scores.sqlite"), trust_remote_code=True)
            assert type(provider.model).__name__ == "Own"
            values.append(provider.score(self.SAMPLES).values / (number + 2))
        np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
