"""``python -m tests.peers.table`` writes what the last run saw into the page on peers, between its two markers."""

from __future__ import annotations

from pathlib import Path

from tests.peers import environments, facts

PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
BEGIN, END = "<!-- the table of the last run -->", "<!-- the table ends -->"
_HEAD = "| peer | version | model | what was compared | numbers | largest difference | date |\n|---|---|---|---|---|---|---|"
_HEADINGS = {"its client, our server": "Their clients, our server", "our client, its server": "Our client, their servers"}


def table(seen: list[facts.Fact], left_out: dict[str, str]) -> str:
    """The text between the markers."""
    parts = []
    for direction, heading in _HEADINGS.items():
        rows = [fact for fact in seen if fact.direction == direction]
        rows.sort(key=lambda fact: (fact.peer.lower(), fact.model, fact.compared))
        lines = [
            f"| {fact.peer} | {fact.version} | {fact.model} | {fact.compared} | {fact.count} | {fact.difference:.1e} | {fact.date} |"
            for fact in rows
        ]
        parts.append("\n".join([f"## {heading}\n", _HEAD, *lines] if lines else [f"## {heading}\n", "None has run."]))
    if left_out:
        parts.append("\n".join(["Not run:\n", *(f"- `{name}`: {reason}" for name, reason in left_out.items())]))
    return "\n\n".join(parts)


def write() -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    left_out = {name: reason for name in environments.names() if (reason := environments.missing(name))}
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(facts.read(), left_out)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write()
