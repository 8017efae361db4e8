"""``python -m tests.plain_english [PATH ...]``."""

from __future__ import annotations

import sys
from pathlib import Path

from .check import COVERED, covered, problems


def main(paths: list[str]) -> int:
    """Print the problems of files and folders, and their number; 1 if there are any."""
    root = Path.cwd()
    count = 0
    for path in covered(root, paths or COVERED):
        for problem in problems(path, str(path.relative_to(root))):
            print(problem)
            count += 1
    print(f"{count} to rewrite", file=sys.stderr)
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
