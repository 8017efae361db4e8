"""``python -m tests.ray_kills``: kill actors, nodes and drivers of ``score --engine ray`` at random moments, and compare what it wrote.

Ray must be importable, such as with ``PYTHONPATH=.venv/worlds/ray-2.60.0``; `make kills-ray` sees to it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rm_plugins.data.row_files import write_rows
from rm_plugins.jobs.scored_rows import ScoringJob
from tests.ray.slow_rewards import kill

ROOT = Path(__file__).parents[1]
REWARD = "provider: function\nfunction: tests.ray.slow_rewards:slow_vowels\ntransform: rank-in-group\n"
VICTIMS = ("actor", "node", "driver")
ROWS = 240
BLOCK_ROWS = 10
STORE_BYTES = 80 * 2**20
LONGEST_RUN = 300.0
DRIVER = f"""
import sys
from pathlib import Path
from rm_plugins.jobs.job_engine import ScoringRequest
from rm_plugins.jobs.progress import JobProgress
from rm_plugins_ray.data_engine import RayDataEngine
address, spec, source, out = sys.argv[1:]
RayDataEngine(address, 3, block_rows={BLOCK_ROWS}).score(ScoringRequest(spec, source, "train", Path(out)), JobProgress())
"""


@dataclass
class Campaign:
    """Runs that are disturbed, on one cluster.

    Args:
        folder: Where the rows are, and what is written.
        moments: Chooses victims and moments.
        cluster: A `ray.cluster_utils.Cluster`, whose head node is never killed.
        victim: What is killed next, if it was chosen and is not there yet.
    """

    folder: Path
    moments: random.Random
    cluster: Any
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    victim: str = ""
    node: Any = None

    def run(self, number: int, most: int) -> str | None:
        """One run to its end, with at most so many kills; says what is wrong with its result."""
        pids, out = self.folder / "pids", self.folder / f"out-{number}.jsonl"
        self.node = self.node or self._new_node()
        for path in pids.iterdir():
            path.unlink()
        driver = self._driver(out)
        deadline = time.monotonic() + LONGEST_RUN
        upcoming = self._soon(6)
        while driver.poll() is None or driver.returncode:
            if time.monotonic() > deadline:
                driver.kill()
                return f"it did not end within {LONGEST_RUN:.0f} s"
            if driver.poll() is not None:
                if out.exists():  # it was killed when its work was done, and another driver would refuse to replace the output
                    break
                driver = self._driver(out)
            if time.monotonic() > upcoming and sum(self.kills.values()) < most:
                driver = self._disturbed(driver, out, pids)
                upcoming = self._soon(3)
            time.sleep(0.02)
        if out.read_bytes() != (self.folder / "here.jsonl").read_bytes():
            return "the result differs from that of an undisturbed run"
        left = [path.name for path in self.folder.iterdir() if out.name in path.name and path != out]
        return f"it left {', '.join(left)}" if left else None

    def _new_node(self) -> Any:
        for _ in range(5):
            with suppress(Exception):  # Ray gives up on a node that a busy machine starts slowly
                return self.cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        raise SystemExit("No node starts on this machine.")

    def _soon(self, seconds: float) -> float:
        return time.monotonic() + self.moments.uniform(0, seconds)

    def _driver(self, out: Path) -> subprocess.Popen[bytes]:
        self.starts += 1
        arguments = [self.cluster.address, str(self.folder / "reward.yaml"), str(self.folder / "in.jsonl"), str(out)]
        with (self.folder / "driver.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stdout=log, stderr=log)

    def _disturbed(self, driver: subprocess.Popen[bytes], out: Path, pids: Path) -> subprocess.Popen[bytes]:
        """Kill something; returns the driver that runs then."""
        victim = self.victim = self.victim or self.moments.choice(VICTIMS)
        scoring = [int(path.name) for path in pids.iterdir() if Path(f"/proc/{path.name}").exists()]
        if victim == "actor" and not scoring:
            return driver  # there is none yet, so it is killed next time
        self.victim = ""
        self.kills[victim] += 1
        if victim == "actor":
            kill(self.moments.choice(sorted(scoring)))
        elif victim == "node":
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = self._new_node()
        else:
            driver.kill()
            driver.wait()
        return driver


def main() -> int:
    """Kill, print the table, and return 1 where a result was another one."""
    parser = argparse.ArgumentParser(prog="python -m tests.ray_kills", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="kills; 20 by default")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of victims and moments")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0", RAY_raylet_start_wait_time_s="120")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")])
    print(f"Killing with the seed {options.seed}.", flush=True)
    from ray.cluster_utils import Cluster

    started, wrong, runs = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory(prefix="ray-kills-") as scratch:
        folder = Path(scratch)
        (folder / "pids").mkdir()
        (folder / "reward.yaml").write_text(REWARD)
        words = [f"{'ae' * (number % 7)}{number}" for number in range(ROWS)]
        rows = [
            {"prompt": f"Q{number // 4}", "completion": text, "pids": scratch + "/pids"} for number, text in enumerate(words)
        ]
        write_rows(rows, folder / "in.jsonl")
        ScoringJob(str(folder / "reward.yaml"), str(folder / "in.jsonl"), "train", folder / "here.jsonl", False).write(16)
        head = {"num_cpus": 2, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            campaign = Campaign(folder, random.Random(options.seed), cluster)
            while sum(campaign.kills.values()) < options.count:
                runs += 1
                if problem := campaign.run(runs, options.count):
                    wrong.append(f"run {runs}: {problem}")
                print(f"run {runs}: {dict(campaign.kills)}, {campaign.starts} starts, {len(wrong)} wrong", flush=True)
                if problem:
                    print((folder / "driver.log").read_text(errors="replace")[-3000:], file=sys.stderr)
        finally:
            cluster.shutdown()
    print("".join(f"{name:>10}" for name in (*VICTIMS, "runs", "starts", "wrong", "seconds")))
    seconds = f"{time.monotonic() - started:.0f}"
    facts = (*(campaign.kills[victim] for victim in VICTIMS), runs, campaign.starts, len(wrong), seconds)
    print("".join(f"{fact!s:>10}" for fact in facts))
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
