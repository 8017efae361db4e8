"""The GPU benchmark works wherever there is no GPU: a miniature of every part, and what happens to parts that die or hang."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks.gpu import __main__ as program
from tests.benchmarks.gpu import wheels
from tests.benchmarks.gpu.events import Event, read_events
from tests.benchmarks.gpu.plan import MINUTES, PARTS, START_SECONDS, Part, chosen
from tests.benchmarks.gpu.shapes import MODERNBERT, QWEN_HALF, QWEN_SEVEN
from tests.benchmarks.gpu.table import section

ROOT = Path(__file__).parents[1]


def test_a_miniature_of_every_part(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Benchmarks\n\n## Before\n\nkept\n", encoding="utf-8")
    options = ["--miniature", "--output", str(tmp_path), "--page", str(page)]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    events: list[Event] = results["events"]
    assert not [event for event in events if event["kind"] == "failed"]
    assert [event["part"] for event in events if event["kind"] == "ended"] == [part.name for part in PARTS]
    rows = [event for event in events if event["kind"] == "row"]
    skipped = [row for row in rows if row["note"].startswith("not measured: ")]  # a library is missing
    assert {row["part"] for row in skipped} <= {"sharded", "quantized"}
    measured = [row for row in rows if row not in skipped]
    assert {row["part"] for row in measured if row["note"]} == {"peak"}  # what stopped sharing, or found no time, would say so
    assert all(row["figures"] for row in measured)
    assert {row["name"] for row in measured if row["part"] == "sharded"} >= {"whole weights", "FSDP2, a mesh of one"}
    assert {row["name"] for row in rows if row["part"] == "quantized"} == {"as it is", "int8", "int4", "nf4"}
    assert len([row for row in measured if row["part"] == "long-rows"]) == 6
    for row in rows:
        for name in ("largest error", "largest difference", "largest relative difference of a loss"):
            assert (row["figures"].get(name) or 0) < 1e-4, row
    assert {row["name"] for row in rows if row["part"] == "scoring-7b" and row["case"] == "long"} == {
        *("rm-plugins", "rm-plugins without sharing", "rm-plugins, packed as in training"),
        *("TRL's padded batch", "pipeline(batch_size=32)"),
    }
    written = page.read_text(encoding="utf-8")
    assert written.startswith("# Benchmarks\n\n## Before\n\nkept\n\n## On a GPU\n\n")
    assert all(f"### {part.title}\n" in written for part in PARTS)
    assert "A miniature on a CPU" in written


def test_everything_fits_into_the_time() -> None:
    assert START_SECONDS + sum(part.seconds for part in PARTS) <= 60 * MINUTES
    assert len({part.name for part in PARTS}) == len(PARTS)


@pytest.mark.parametrize(
    ("shape", "billions"), [(QWEN_HALF, 0.494), (QWEN_SEVEN, 7.07), (MODERNBERT, 0.396)], ids=lambda value: str(value)[:20]
)
def test_shapes_are_those_of_the_published_models(shape: object, billions: float) -> None:
    """The published counts, without the language model's head: 0.49, 7.62 less its head of 0.54, and 0.395 billion."""
    import torch

    from tests.benchmarks.gpu.shapes import Shape
    from tests.conftest import make_tokenizer

    assert isinstance(shape, Shape)
    model = shape.build(make_tokenizer(), torch.device("meta"), torch.bfloat16)
    assert model.num_parameters() == pytest.approx(billions * 1e9, rel=0.01)


# --- Parts that die or hang ---------------------------------------------------------------------------------------------------

WORKER = """
import json, os, sys, time
path, *parts = sys.argv[1:]
def event(part, kind, **more):
    with open(path, "a") as file:
        file.write(json.dumps({"part": part, "kind": kind, "time": time.time(), **more}) + "\\n")
for part in parts:
    event(part, "started")
    if part == "training-0.5b":
        os.kill(os.getpid(), 9)
    if part == "memory":
        with open(path, "a") as file:
            file.write('{"part": "memory", "kind": "ro')
        time.sleep(600)
    event(part, "row", name="it", case="", figures={"seconds": 1}, note="")
    event(part, "ended")
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    monkeypatch.setattr(Part, "limit", property(lambda part: 1.0))
    return [sys.executable, str(script), str(tmp_path / "rows.jsonl")]


def test_a_part_that_dies_or_hangs_costs_no_other(worker: list[str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    parts = chosen(["peak", "training-0.5b", "costs", "memory", "serving"])
    program.run_parts(parts, rows, time.time() + 60, worker)
    events = read_events(rows)
    assert {event["part"]: event["error"] for event in events if event["kind"] == "failed"} == {
        "training-0.5b": "the process ended with -9",
        "memory": "cut off after 1 s",
    }
    assert [event["part"] for event in events if event["kind"] == "row"] == ["peak", "costs", "serving"]
    text = section("it", parts, events)
    assert "### Training, Qwen2.5-0.5B, all weights\n\nEnded early: the process ended with -9" in text


def test_nothing_runs_beyond_the_deadline(worker: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Part, "limit", property(lambda part: 100.0))
    monkeypatch.setattr(program, "_GRACE", 0.5)
    rows = tmp_path / "rows.jsonl"
    started = time.time()
    program.run_parts(chosen(["memory", "serving"]), rows, started + 1, worker)
    assert time.time() - started < 20
    assert [event["error"] for event in read_events(rows) if event["kind"] == "failed"] == [
        "cut off: the time of all parts was over"
    ]
    assert "Not measured: no time was left." in section("it", chosen(["memory", "serving"]), read_events(rows))


def test_a_process_that_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(4)"]
    with pytest.raises(SystemExit, match="Nothing was measured: the process ended with 4"):
        program.run_parts(chosen(["peak"]), tmp_path / "rows.jsonl", time.time() + 60, command)


# --- Figures and targets ------------------------------------------------------------------------------------------------------


def row(part: str, name: str, figures: dict[str, float], case: str = "") -> Event:
    return {"part": part, "kind": "row", "time": 0, "name": name, "case": case, "figures": figures, "note": ""}


def test_targets() -> None:
    events = [
        row("scoring-7b", "rm-plugins", {"tokens/s": 600.0, "MFU": 0.4}, "grouped"),
        row("scoring-7b", "TRL's padded batch", {"tokens/s": 100.0}, "grouped"),
        row("training-7b", "rm-plugins", {"tokens/s": 300.0, "largest relative difference of a loss": 0.5}),
        row("training-7b", "TRL's RewardTrainer", {"tokens/s": 100.0}),
        row("serving", "rm-plugins serve, 64 clients", {"times in process": 0.95}),
    ]
    text = section("it", PARTS, events)
    assert "| scoring-7b, grouped: times TRL's tokens/s | at least 5 | 6 | met |" in text
    assert "| scoring-7b, grouped: MFU | at least 0.5 | 0.4 | missed |" in text
    assert "| training-7b: times TRL's tokens/s, with losses that differ by 0.5 | at least 2 | 3 | met |" in text
    assert "| serving: times in process | at least 0.9 | 0.95 | met |" in text


def test_operations_are_counted_as_published() -> None:
    """Two for a weight and token; four for a width, a token, and each token that it sees."""
    spans = [(0, 3), (3, 5)]
    pairs = sum(range(1, 6))
    assert QWEN_HALF.forward_flops(10, spans) == 2 * 10 * 5 + 4 * 896 * 24 * pairs
    assert QWEN_HALF.forward_flops(10, [(0, 5)]) == QWEN_HALF.forward_flops(10, spans)
    seen = 10 * 200 + 18 * 129
    assert MODERNBERT.forward_flops(10, [(0, 200)]) == 2 * 10 * 200 + 4 * 1_024 * 200 * seen


# --- Wheels for a machine that can download nothing ---------------------------------------------------------------------------


def test_what_the_machine_has_is_not_gathered() -> None:
    machine = wheels.present(wheels.HERE / "bare_machine.txt")
    report = {"install": [{"metadata": {"name": name, "version": "1"}} for name in ("Torch", "trl", "typing_extensions")]}
    assert wheels.missing(report, machine) == ["trl==1"]
    assert len(machine) == len({wheels.canonical(line) for line in machine})


def test_a_folder_without_wheels(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--wheels", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "There are no wheels in" in ended.stderr
