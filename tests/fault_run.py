"""Scores through the fault proxy and shows what happened: ``python -m tests.fault_run --samples 10000``."""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import rm_plugins as rm
from rm_plugins.protocols import Native
from rm_plugins.providers.remote import Remote
from tests.fault_proxy import FaultProxy, Scorer, reward_of
from tests.servers import serving


@dataclass
class FaultRun:
    """What came of a run.

    Args:
        values: The scores.
        expected: What they must be.
        happened: What the proxy did, and to how many requests.
        counts: What the provider counted.
        seconds: How long it took.
        requested: How often the scorer was asked for each text.
    """

    values: Sequence[float]
    expected: Sequence[float]
    happened: Counter[str]
    counts: Counter[str]
    seconds: float
    requested: Counter[str]

    @property
    def wrong(self) -> int:
        """Scores that are not those of their text; a missing one is NaN, and not that either."""
        return sum(value != right for value, right in zip(self.values, self.expected, strict=True))


def run(samples: int, *, share: float = 0.3, seed: int = 0, timeout: float = 1.0, calls: int = 1, **settings: Any) -> FaultRun:
    """Score so many samples, a tenth of them doubles, through a proxy that spoils a share of the requests."""
    texts = [f"sample {row % (samples - samples // 10)}" for row in range(samples)]
    scorer = Scorer()
    with (
        serving(scorer, lifespan="off") as target,
        FaultProxy(urlsplit(target).port or 0, share=share, seed=seed, late=timeout * 1.5) as proxy,
    ):
        remote = Remote(url=proxy.url, protocol=Native(), timeout=timeout, tries=12, **settings)
        begun = time.monotonic()
        values: list[float] = []
        size = -(-samples // calls)
        for start in range(0, samples, size):
            batch = [rm.Sample("Q: ", text) for text in texts[start : start + size]]
            values.extend(remote.score(batch).values.tolist())
        seconds = time.monotonic() - begun
        remote.close()
    expected = [reward_of(f"Q: {text}") for text in texts]
    return FaultRun(values, expected, proxy.happened, remote.counts, seconds, Counter(scorer.texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--calls", type=int, default=4)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s %(name)s: %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    found = run(asked.samples, share=asked.share, seed=asked.seed, batch_size=asked.batch_size, calls=asked.calls)
    spoilt = sum(number for name, number in found.happened.items() if name not in ("requests", "nothing"))
    print(f"\n{len(found.values):,} samples in {found.seconds:.1f} s; wrong or missing scores: {found.wrong}")
    print(f"\nWhat the proxy did ({spoilt:,} of {found.happened['nothing'] + spoilt:,} requests):")
    for name, number in found.happened.most_common():
        if name not in ("requests", "nothing"):
            print(f"  {name:<16}{number:>6,}")
    print("\nWhat the provider counted:")
    for name, number in sorted(found.counts.items()):
        print(f"  {name:<20}{number:>6,}")


if __name__ == "__main__":
    main()
