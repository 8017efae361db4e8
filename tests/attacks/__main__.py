"""Runs every attack and prints a table."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.attacks import __doc__ as about
from tests.attacks.attacks import ATTACKS, run


def main() -> None:
    """Attack, and say what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=about)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each attack lasts (default: 5)")
    parser.add_argument("--only", default="", help="only attacks with this in their name")
    chosen = parser.parse_args()
    broken = 0
    print("| attack | idle | peak | allowed | slowest health | SIGTERM to end | met |\n|---|---|---|---|---|---|---|")
    for attack in ATTACKS:
        if chosen.only not in attack.name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                seen, met = run(attack, Path(folder), chosen.seconds)
                wrong = seen.broken
            except (AssertionError, RuntimeError) as error:
                print(f"| {attack.name} | **{str(error)[:300]}** |", flush=True)
                broken += 1
                continue
        broken += bool(wrong)
        figures = f"{seen.idle:.0f} MiB | {seen.peak:.0f} MiB | {seen.most:.0f} MiB | {seen.health:.2f} s | {seen.ending:.1f} s"
        print(f"| {attack.name} | {figures} | {met}{''.join(f'; **{what}**' for what in wrong)} |", flush=True)
    print(f"\n{broken} attacks broke a promise." if broken else "\nEvery promise was kept.")
    raise SystemExit(broken > 0)


if __name__ == "__main__":
    main()
