"""The tables of the page about remote rewards say what the protocols do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from rm_plugins.protocols import Protocol
from rm_plugins.registry import default_registry
from rm_plugins.spec import component

PAGE = Path(__file__).parents[2] / "docs" / "providers" / "remote.md"
PROTOCOLS = [
    name for name, found in default_registry().all("protocol").items() if found.cls.__module__.startswith("rm_plugins.")
]


def table(header: str) -> dict[str, list[str]]:
    """The cells of each row of the page's table with this header, by the protocol in the first one."""
    (found,) = re.findall(rf"^\| {re.escape(header)}.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found.splitlines()]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def protocol(name: str) -> Protocol:
    made: Protocol = component("protocol", name)
    return made


def test_every_protocol_is_in_both_tables() -> None:
    assert sorted(table("protocol | server")) == sorted(PROTOCOLS)
    assert sorted(table("protocol | a sample")) == sorted(set(PROTOCOLS) - {"auto"})


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"auto"}))
def test_what_is_sent_and_read_is_what_the_page_says(name: str) -> None:
    sent, read, special = table("protocol | a sample")[name]
    spoken = protocol(name)
    assert sent == ", ".join(spoken.sent_as)
    if spoken.reads in ("last", "before-padding"):
        assert read == f"`{spoken.reads}`"
    else:
        assert "`last`" not in read
        assert ("not known" in read) == (spoken.reads == "unknown")
    assert (special == "added by the server") == (spoken.server_adds_special_tokens or name == "sglang")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_key_is_named(name: str) -> None:
    keys = table("protocol | server")[name][-1]
    if name != "openai-judge":
        assert re.findall(r"`(\w+)`", keys) == [*inspect.signature(type(protocol(name)).__init__).parameters][1:]


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"auto"}))
def test_a_protocol_says_what_is_likely_wrong_where_its_path_is_not_there(name: str) -> None:
    assert protocol(name).if_absent
