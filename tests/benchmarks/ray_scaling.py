"""What scoring a very large data set with Ray Data takes, by arithmetic: ``python -m tests.benchmarks.ray_scaling --help``.

Every constant is an option, so that you can put in what you measured. The formulas are those of docs/ray-data.md.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Constants:
    """What was measured or is assumed, with its unit."""

    rows: float = 1e9
    row_bytes: float = 800  # bytes of a row as JSON Lines
    gpus: float = 64
    row_rate: float = 1_000  # rows a GPU scores per second; `rm-plugins score` on one GPU tells
    block_rows: float = 4_096
    plan_rate: float = 500e6  # bytes that one CPU divides into blocks per second
    planners: float = 64  # CPUs that divide files
    worker_row_seconds: float = 25e-6  # per row of a block: reading, digests and writing, one CPU
    finish_row_seconds: float = 30e-6  # per row: reading it again, and writing the output, one CPU
    finishers: float = 64  # CPUs that write files; 1 where the output is one file
    block_seconds: float = 0.05  # Ray and the fsync of a block
    driver_block_seconds: float = 0.005  # what the driver does per block, one at a time
    start_seconds: float = 90  # until the actors have loaded the model
    mtbf_hours: float = 2_000  # hours between failures of one GPU's node
    gpu_hour: float = 2.5  # price of a GPU for an hour


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of each stage, and what follows from them."""

    plan: float
    score: float
    driver: float
    tail: float
    restarts: float
    failures: float
    finish: float
    total: float
    blocks: float
    read_rate: float
    per_million: float


def estimate(c: Constants) -> Estimate:
    """The stages of a run.

    >>> round(estimate(Constants(rows=1e6, gpus=1, planners=1, finishers=1)).score)
    1041
    """
    blocks = math.ceil(c.rows / c.block_rows)
    of_block = c.block_rows * (1 / c.row_rate + c.worker_row_seconds) + c.block_seconds
    plan = c.rows * c.row_bytes / (c.plan_rate * c.planners)
    score = blocks * of_block / c.gpus
    driver = blocks * c.driver_block_seconds
    tail = of_block  # when the first actor finds nothing to do, the last has just begun a block
    working = max(score, driver)
    failures = c.gpus * working / (3600 * c.mtbf_hours)
    # A failed actor loses half a block and what waits with it, and loads the model again, while the others go on.
    restarts = failures * (of_block / 2 + c.start_seconds) / c.gpus
    finish = c.rows * c.finish_row_seconds / c.finishers
    total = c.start_seconds + plan + working + restarts + tail + finish
    return Estimate(
        plan,
        score,
        driver,
        tail,
        restarts,
        failures,
        finish,
        total,
        blocks,
        c.row_bytes * c.gpus / (1 / c.row_rate + c.worker_row_seconds),
        c.gpus * total / 3600 * c.gpu_hour / (c.rows / 1e6),
    )


def table(c: Constants) -> str:
    """The estimate as a table in Markdown."""
    e = estimate(c)
    rows = [
        ("start the actors", "`start_seconds`", f"{c.start_seconds:,.0f} s"),
        ("divide the files", "`rows * row_bytes / (plan_rate * planners)`", f"{e.plan:,.0f} s"),
        ("score", "`blocks * of_block / gpus`", f"{e.score:,.0f} s"),
        ("driver, meanwhile", "`blocks * driver_block_seconds`", f"{e.driver:,.0f} s"),
        ("failures", "`gpus * score / mtbf`", f"{e.failures:.2f}"),
        ("restarts", "`failures * (of_block / 2 + start_seconds) / gpus`", f"{e.restarts:.1f} s"),
        ("straggler: the last block", "`of_block`", f"{e.tail:.1f} s"),
        ("write the output", "`rows * finish_row_seconds / finishers`", f"{e.finish:,.0f} s"),
        ("**total**", "", f"**{e.total / 3600:.1f} h**"),
        ("reads while scoring", "`row_bytes * gpus / (1 / row_rate + worker_row_seconds)`", f"{e.read_rate / 1e6:,.0f} MB/s"),
        ("cost per million rows", "`gpus * total * gpu_hour / (rows / 1e6)`", f"${e.per_million:.2f}"),
    ]
    lines = ["| | formula | value |", "|---|---|---|", *(f"| {name} | {formula} | {value} |" for name, formula, value in rows)]
    return "\n".join(lines)


def main() -> None:
    """Print the table for the constants that were given."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ray_scaling", description=__doc__)
    for one in fields(Constants):
        parser.add_argument(
            f"--{one.name.replace('_', '-')}", type=float, default=one.default, help=f"by default {one.default:g}"
        )
    print(table(Constants(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
