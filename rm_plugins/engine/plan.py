"""Plans which tokens run together and which prefixes are computed once for several rows. Pure: token ids in, a `Plan` out."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

CONTEXT_FACTOR = 4
"""The limit, in token budgets, on the tokens that a stage caches and on those that a micro-batch reads and computes."""
MAX_LEVELS = 16
"""The largest depth of shared prefixes within shared prefixes."""
MAX_PIECES = 128
"""The largest number of pieces of a row that exceeds the budget."""

TokenArray: TypeAlias = NDArray[np.uintc]


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a plan in addition to computing tokens, in units of computing one token.

    Args:
        launch: The cost of one micro-batch of any size.
        read: The cost of reading one cached token for one row.
    """

    launch: float
    read: float


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens ``start`` to ``stop`` of a row. The tokens before them are cached by ``parent``.

    Args:
        row: The number of the row.
        start: The position of the first token.
        stop: The position after the last token.
        parent: The position of the continued segment in the previous stage; None at the start of a row.
    """

    row: int
    start: int
    stop: int
    parent: int | None = None

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Segments that run together: packed one after the other, or padded to the longest one."""

    segments: tuple[Segment, ...]
    is_packed: bool = False

    @property
    def padded_tokens(self) -> int:
        """Tokens that are computed, padding included."""
        lengths = [*map(len, self.segments)]
        return sum(lengths) if self.is_packed else len(lengths) * max(lengths)


@dataclass(frozen=True, slots=True)
class Stage:
    """Micro-batches that run one after the other, and the stages that continue them.

    Args:
        batches: The micro-batches; padded ones come longest first, so that the memory peak comes early.
        continuations: The stages that continue the segments of all micro-batches; empty if the segments end their rows, which are
            then scored in this stage.
    """

    batches: tuple[MicroBatch, ...]
    continuations: tuple[Stage, ...] = ()

    @property
    def segments(self) -> list[Segment]:
        """The segments of all micro-batches."""
        return [segment for batch in self.batches for segment in batch.segments]

    def walk(self) -> Iterator[Stage]:
        """This stage and its continuations at all depths, each stage before its continuations."""
        yield self
        for stage in self.continuations:
            yield from stage.walk()


@dataclass(frozen=True, slots=True)
class Plan:
    """How a batch of N rows is computed.

    Args:
        stages: The stages that start rows; each holds its continuations.
        computed_as: The row whose result each row gets, [N]: itself, or the first row with the same tokens.
    """

    stages: tuple[Stage, ...]
    computed_as: list[int]

    def walk(self) -> Iterator[Stage]:
        """Every stage, each before its continuations."""
        return (inner for stage in self.stages for inner in stage.walk())

    @property
    def batches(self) -> Iterator[MicroBatch]:
        """Every micro-batch, in the order in which they run."""
        return (batch for stage in self.walk() for batch in stage.batches)

    @property
    def shares_prefixes(self) -> bool:
        """Whether a stage continues another."""
        return any(stage.continuations for stage in self.stages)

    @property
    def packs(self) -> bool:
        """Whether a micro-batch is packed."""
        return any(batch.is_packed for batch in self.batches)

    @property
    def pads_prefixes(self) -> bool:
        """Whether a stage caches prefixes of different lengths, which are then padded."""
        padded = (stage for stage in self.walk() if stage.continuations and not stage.batches[0].is_packed)
        return any(len({segment.stop for segment in stage.segments}) > 1 for stage in padded)

    @property
    def tokens(self) -> int:
        """Tokens that are computed, without padding."""
        return sum(len(segment) for batch in self.batches for segment in batch.segments)

    @property
    def padded_tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return sum(batch.padded_tokens for batch in self.batches)

    def cost(self, costs: Costs) -> float:
        """The estimated cost of running the plan, in units of computing one token."""
        read = sum(segment.start for batch in self.batches for segment in batch.segments)
        return self.padded_tokens + costs.read * read + costs.launch * sum(1 for _ in self.batches)


def plan_batches(
    rows: Sequence[Sequence[int]], max_tokens: int, costs: Costs, *, share_prefixes: bool, packs: bool = False
) -> Plan:
    """Plan the computation of all rows, with duplicates computed once.

    Args:
        rows: Token ids per row, [N] non-empty lists.
        max_tokens: The budget of padded tokens of a micro-batch. A longer row runs alone: if prefixes can be cached, in consecutive
            pieces of the budget, else whole.
        costs: Decide where rows are split into micro-batches and which prefixes are worth sharing.
        share_prefixes: Whether the model can continue cached tokens.
        packs: Whether segments that share a prefix are packed. Other rows are padded.

    >>> plan = plan_batches([[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2, 3, 4]], 100, Costs(launch=1, read=0.01), share_prefixes=True)
    >>> plan.computed_as
    [0, 1, 0]
    >>> for batch in plan.batches:
    ...     print([(segment.row, segment.start, segment.stop) for segment in batch.segments])
    [(0, 0, 3)]
    [(1, 3, 5), (0, 3, 4)]
    """
    # Sorting by the tokens' bytes, in any byte order, puts rows with a common prefix next to each other.
    keys = [array("I", row).tobytes() for row in rows]
    first: dict[bytes, int] = {}
    computed_as = [first.setdefault(key, row) for row, key in enumerate(keys)]
    whole = [_Node(row, 0, len(rows[row])) for row in first.values()]
    plain = Plan(_stages([(node, None) for node in whole], max_tokens, costs), computed_as)
    if not share_prefixes:
        return plain
    tree = _worth_sharing(_prefix_tree(sorted(first.items())), max_tokens, costs, packs=packs)
    nodes = [(_in_pieces(node, max_tokens), None) for node in tree.children]
    shared = Plan(_stages(nodes, max_tokens, costs, packs=packs), computed_as)
    too_long = any(batch.padded_tokens > max_tokens for batch in plain.batches)
    return shared if too_long or shared.cost(costs) < plain.cost(costs) else plain


def micro_batches(
    lengths: Sequence[int], max_tokens: int, launch: float = math.inf, contexts: Sequence[int] | None = None
) -> list[list[int]]:
    """Group rows by length, so that a padded micro-batch holds at most `max_tokens` tokens.

    Every row appears exactly once; a row longer than the budget runs alone. The longest rows come first, so that the first micro-batch
    has the peak memory. A micro-batch ends early if filling it up would cost more padding than another launch.

    Args:
        lengths: Tokens per row, [N].
        max_tokens: The largest product of rows and longest row in a micro-batch.
        launch: The cost of a micro-batch, in tokens.
        contexts: Cached tokens before each row, [N]; rows x (longest row + longest context) stays within
            `CONTEXT_FACTOR` budgets.

    >>> micro_batches([3, 9, 4, 3], max_tokens=10)
    [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = context = 0
    for left, row in zip(range(len(lengths), 0, -1), sorted(range(len(lengths)), key=lambda row: -lengths[row]), strict=True):
        if contexts is not None:
            context = max(context, contexts[row])
        size = len(batch) + 1
        full = size * longest > max_tokens or (context > 0 and size * (longest + context) > CONTEXT_FACTOR * max_tokens)
        if batch and (full or (longest - lengths[row]) * min(left, max_tokens // longest - len(batch)) > launch):
            batches.append(batch)
            batch = []
        if not batch:
            longest = lengths[row]
            context = contexts[row] if contexts is not None else 0
        batch.append(row)
    return [*batches, batch] if batch else batches


def packs_in_order(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group neighbours, so that a group has at most `max_tokens` tokens; a longer row is alone.

    >>> packs_in_order([3, 4, 9, 2, 12, 1], max_tokens=10)
    [[0, 1], [2], [3], [4], [5]]
    """
    groups: list[list[int]] = []
    tokens = 0
    for row, length in enumerate(lengths):
        tokens += length
        if not groups or tokens > max_tokens:
            groups.append([])
            tokens = length
        groups[-1].append(row)
    return groups


def _stages(
    nodes: Sequence[tuple[_Node, int | None]], max_tokens: int, costs: Costs, *, packs: bool = False
) -> tuple[Stage, ...]:
    """The stages of nodes, each given with the position of the segment that it continues: prefixes first, then ends of rows."""
    inner = [(node, parent) for node, parent in nodes if node.children]
    ends = [(node, parent) for node, parent in nodes if not node.children]
    cached = CONTEXT_FACTOR * max_tokens
    groups = (
        packs_in_order([len(node) for node, _ in inner], cached)
        if packs
        else micro_batches([node.stop for node, _ in inner], cached)
    )
    stages = [_stage([inner[at] for at in group], max_tokens, costs, packs=packs) for group in groups]
    continue_some = any(parent is not None for _, parent in ends)
    return (*stages, _stage(ends, max_tokens, costs, packs=packs and continue_some)) if ends else tuple(stages)


def _stage(nodes: Sequence[tuple[_Node, int | None]], max_tokens: int, costs: Costs, *, packs: bool) -> Stage:
    lengths, contexts = [len(node) for node, _ in nodes], [node.start for node, _ in nodes]
    # Packed segments that continue the same prefix stay neighbours, as in the tree.
    groups = packs_in_order(lengths, max_tokens) if packs else micro_batches(lengths, max_tokens, costs.launch, contexts)
    batches = [
        MicroBatch(
            tuple(Segment(node.row, node.start, node.stop, parent) for node, parent in (nodes[at] for at in group)), packs
        )
        for group in groups
    ]
    order = [nodes[at][0] for group in groups for at in group]
    below = [(child, position) for position, node in enumerate(order) for child in node.children]
    return Stage(tuple(batches), _stages(below, max_tokens, costs, packs=packs))


@dataclass(slots=True)
class _Node:
    """Consecutive tokens that all rows below it share; a node without children is the end of one row."""

    row: int
    start: int
    stop: int
    children: list[_Node] = field(default_factory=list)
    below: int = 0
    dissolved: bool = False

    def __len__(self) -> int:
        return self.stop - self.start


def _prefix_tree(keys: Sequence[tuple[bytes, int]]) -> _Node:
    """The prefix tree of distinct rows, given as sorted pairs of their tokens' bytes and their numbers.

    The end of a row is always a separate node with at least one token, even if the whole row is a prefix of another.
    """
    tokens = [np.frombuffer(key, dtype=np.uintc) for key, _ in keys]
    root = _Node(-1, 0, 0)
    path = [root]  # from the root to the end of the previous row; every node ends later than its parent
    for position, (_, row) in enumerate(keys):
        common = _common_prefix(tokens[position - 1], tokens[position]) if position else 0
        branch = root
        while path[-1].stop > common:
            branch = path.pop()
        if path[-1].stop < common:  # the row differs from the previous one inside `branch`: split off the part that both share
            path[-1].children[-1] = _Node(branch.row, path[-1].stop, common, [branch])
            path.append(path[-1].children[-1])
            branch.start = common
        leaf = _Node(row, path[-1].stop, len(tokens[position]))
        path[-1].children.append(leaf)
        path.append(leaf)
    return root


def _common_prefix(one: TokenArray, other: TokenArray) -> int:
    """The number of leading tokens that two rows share, not counting the last token of either."""
    length = min(len(one), len(other)) - 1
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _worth_sharing(root: _Node, max_tokens: int, costs: Costs, *, packs: bool) -> _Node:
    """Dissolve the nodes that cost more than they save: their children compute the tokens themselves."""
    levels = [[root]]
    while below := [child for node in levels[-1] for child in node.children if child.children]:
        levels.append(below)
    for level in range(len(levels) - 1, 0, -1):
        for node in levels[level]:
            _replace_dissolved(node)
            # Without the node, each child would compute its tokens; with it, the children read them, and the node reads its own prefix.
            saved = len(node) * (len(node.children) - 1) - costs.read * (len(node) * node.below + node.start)
            node.dissolved = saved <= 0 or level > MAX_LEVELS
        shared = [node for node in levels[level] if not node.dissolved]
        lengths = [len(node) for node in shared]
        batches = packs_in_order(lengths, max_tokens) if packs else micro_batches(lengths, max_tokens, costs.launch)
        padded = sum(lengths) if packs else sum(len(batch) * lengths[batch[0]] for batch in batches)
        spent = costs.launch * len(batches) + padded
        if any(not child.children for node in levels[level - 1] for child in node.children):
            spent += costs.launch  # rows that end deeper run separately from those that end at this level
        spent += sum(costs.read * (len(node) * node.below + node.start) for node in shared)
        if spent >= sum(len(node) * len(node.children) for node in shared):
            for node in shared:
                node.dissolved = True
    _replace_dissolved(root)
    for node in (node for level in levels for node in level if not node.dissolved):
        for child in node.children:
            child.start = node.stop
    return root


def _replace_dissolved(node: _Node) -> None:
    """Replace the dissolved children of a node by their children."""
    node.children = [inner for child in node.children for inner in (child.children if child.dissolved else [child])]
    node.below = sum(1 + child.below for child in node.children)


def _in_pieces(node: _Node, max_tokens: int) -> _Node:
    """The node split into a chain of nodes within the budget, and its descendants likewise."""
    children = [_in_pieces(child, max_tokens) for child in node.children]
    size = max(max_tokens, -(-len(node) // MAX_PIECES))
    for start in reversed(range(node.start, node.stop, size)):
        children = [_Node(node.row, start, min(start + size, node.stop), children)]
    return children[0]
