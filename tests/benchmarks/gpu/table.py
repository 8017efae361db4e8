"""What was measured on a GPU, as a section of a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tests.benchmarks.gpu.events import Event
from tests.benchmarks.gpu.plan import Part

_EQUAL_LOSSES = 0.02
"""The relative difference up to which losses are called equal: steps in bfloat16 round to two or three digits."""


def section(command: str, parts: Sequence[Part], events: Sequence[Event], *, is_miniature: bool = False) -> str:
    """The section, as Markdown without its heading; the figures of a miniature are compared with no target."""
    machine = next((event for event in events if event["kind"] == "machine"), {})
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("part", "kind", "time", "device"))
    pieces = [f"Made by `{command}`: {machine.get('device', 'no device')}; {facts}.", _HOW]
    pieces += [
        "A miniature on a CPU, to test this program: do not compare its figures." if is_miniature else _targets(events),
        _time(parts, events),
    ]
    for part in parts:
        rows = [event for event in events if event["part"] == part.name and event["kind"] == "row"]
        failures = [event["error"] for event in events if event["part"] == part.name and event["kind"] == "failed"]
        pieces.append(f"### {part.title}")
        if rows:
            pieces.append(_rows(rows))
        pieces += [f"Ended early: {failure.partition(chr(10))[0]}" for failure in failures]
        if not rows and not failures:
            pieces.append("Not measured: no time was left.")
    return "\n\n".join(pieces)


_HOW = (
    "Models have random weights in the shapes of published models, in bfloat16 unless another type is given. Data:\n\n"
    "- Grouped: 64 prompts of 512 tokens with 8 completions of 64 to 512 tokens each.\n"
    "- Mixed: 512 rows with lengths distributed like LLMBar's.\n"
    "- Long: 2 prompts of 8,192 tokens with 16 completions each.\n\n"
    "Figures:\n\n"
    "- Seconds are medians of up to three calls after a first call, with tokenization.\n"
    "- tokens/s counts the tokens of all rows, without padding.\n"
    "- MFU is the speed of the operations on the computed tokens, without padding, relative to the device's best matrix product.\n"
    "- The largest error compares four rows with float32, computed row by row. The deviation is the standard deviation of the scores."
)


def _rows(rows: Sequence[Event]) -> str:
    figures = list(dict.fromkeys(name for row in rows for name, value in row["figures"].items() if value is not None))
    cases, notes = any(row["case"] for row in rows), any(row["note"] for row in rows)
    head = ["", *(["case"] if cases else []), *figures, *(["note"] if notes else [])]
    lines = [
        [
            row["name"],
            *([row["case"]] if cases else []),
            *(_number(row["figures"].get(name)) for name in figures),
            *([row["note"]] if notes else []),
        ]
        for row in rows
    ]
    return _table(head, lines)


def _targets(events: Sequence[Event]) -> str:
    lines = [
        (what, f"at least {wanted:g}", _number(measured), "met" if measured >= wanted else "missed")
        for what, wanted, measured in _measured_targets(events)
    ]
    return _table(("", "wanted", "measured", ""), lines) if lines else "No target was measured."


def _measured_targets(events: Sequence[Event]) -> Iterator[tuple[str, float, float]]:
    rows = {(row["part"], row["case"], row["name"]): row["figures"] for row in events if row["kind"] == "row"}
    for part in ("scoring-0.5b", "scoring-7b", "scoring-modernbert"):
        for case, wanted in (("grouped", 5.0), ("mixed", 3.0)):
            ours, theirs = rows.get((part, case, "rm-plugins")), rows.get((part, case, "TRL's padded batch"))
            if ours and theirs:
                yield f"{part}, {case}: times TRL's tokens/s", wanted, ours["tokens/s"] / theirs["tokens/s"]
        if part == "scoring-7b" and (ours := rows.get((part, "grouped", "rm-plugins"))) and ours.get("MFU") is not None:
            yield f"{part}, grouped: MFU", 0.5, ours["MFU"]
    for part in ("training-0.5b", "training-7b-lora", "training-7b"):
        ours, theirs = rows.get((part, "", "rm-plugins")), rows.get((part, "", "TRL's RewardTrainer"))
        if ours and theirs:
            difference = ours.get("largest relative difference of a loss")
            equal = difference is not None and difference <= _EQUAL_LOSSES
            what = "at equal losses" if equal else f"with losses that differ by {_number(difference)}"
            yield f"{part}: times TRL's tokens/s, {what}", 2.0, ours["tokens/s"] / theirs["tokens/s"]
    for (part, _, name), figures in rows.items():
        if part == "serving" and name.startswith("rm-plugins"):
            yield "serving: times in process", 0.9, figures["times in process"]


def _time(parts: Sequence[Part], events: Sequence[Event]) -> str:
    lines = []
    for part in parts:
        times = [event["time"] for event in events if event["part"] == part.name]
        started = [event["time"] for event in events if event["part"] == part.name and event["kind"] == "started"]
        lines.append((part.name, f"{part.seconds:g}", f"{max(times) - started[0]:.1f}" if started else ""))
    return _table(("part", "planned seconds", "seconds"), lines)


def _number(value: Any) -> str:
    """A figure with three digits, and with commas where it is large."""
    if value is None or isinstance(value, (bool, str)):
        return "" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
