"""What messages say about a path at which nothing is, or something of another kind."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from itertools import islice
from pathlib import Path

from rm_plugins.errors import nearest_name

_MOST_NAMES = 1_000
"""How many names of a folder are compared with the one that is missing."""


_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}


def not_there(path: Path, written: str | None = None, *, advice: str = "Check the path.") -> str:
    """The end of a message that says what is not at a path: where was looked, and what is there instead or has a similar name.

    Args:
        path: The path.
        written: The path as the message names it; `path` by default.
        advice: What to do where no similar name is known.

    >>> f"There is no file '/proc/self/statuss'{not_there(Path('/proc/self/statuss'))}"
    "There is no file '/proc/self/statuss'. Did you mean '/proc/self/status'?"
    >>> f"There is no file '/usr'{not_there(Path('/usr'))}"
    "There is no file '/usr': it is a folder. Check the path."
    >>> f"There is no file '/absent/rows/a.jsonl'{not_there(Path('/absent/rows/a.jsonl'))}"
    "There is no file '/absent/rows/a.jsonl'. The last folder of its path that exists is /. Check the path."
    """
    looked_for = Path(os.path.abspath(path))
    looked = "" if str(looked_for) == (str(path) if written is None else written) else f" (looked for {looked_for})"
    if kind := _kind(path):
        return f"{looked}: it is {kind}. {advice}"
    if nearest := nearest_path(path):
        return f"{looked}. Did you mean {str(nearest)!r}?"
    existing = _existing_folder(looked_for)
    gap = (
        "" if existing is None or existing == looked_for.parent else f"The last folder of its path that exists is {existing}. "
    )
    return f"{looked}. {gap}{advice}"


def nearest_path(path: Path) -> Path | None:
    """The existing path that was probably meant: one name of `path` differs by a slip of the fingers. None where nothing is similar."""
    existing = _existing_folder(path)
    if existing is None:
        return None
    missing, *others = path.relative_to(existing).parts
    names: list[str] = []
    with suppress(OSError), os.scandir(existing) as entries:
        names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    nearest = nearest_name(missing, names)
    meant = None if nearest is None else existing.joinpath(nearest, *others)
    return meant if meant is not None and _kind(meant) else None


def other_kind(path: Path) -> str | None:
    """The kind of what is at a path, such as "a folder", if it is not a regular file; None for a regular file or nothing."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # it does not exist, or the name is invalid
        return None
    return next((kind for is_kind, kind in _KINDS.items() if is_kind(mode)), None)


def _existing_folder(path: Path) -> Path | None:
    return next((parent for parent in path.parents if _kind(parent) == "a folder"), None)


def _kind(path: Path) -> str | None:
    with suppress(OSError, ValueError):  # the name is too long, or no system has it
        return other_kind(path) or ("a file" if path.is_file() else None)
    return None
