"""Rewards that stand side by side are told apart."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.labels import distinct_labels

FOLDERS = st.lists(st.sampled_from(["a", "b", "checkpoint-500", "checkpoint-500 (2)"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(FOLDERS, max_size=8))
def test_no_two_folders_are_called_the_same(folders: list[str]) -> None:
    labels = [Path(folder).name for folder in folders]
    names = distinct_labels(labels, folders)
    assert len({*names}) == len(folders)
    assert names == distinct_labels(labels, folders)
    for name, label, folder in zip(names, labels, folders, strict=True):
        if labels.count(label) == 1 and name != label:
            assert name.startswith(f"{label} (")  # another one's name was that already
        if folders.count(folder) == 1 and "(2)" not in folder:
            assert f"{os.path.abspath(folder)}".endswith(name.partition(" (")[0])


@given(st.lists(st.tuples(st.sampled_from(["f", "f (2)", ""]), st.sampled_from(["", "m:f", "n:f", "f"])), max_size=8))
def test_nor_any_other_rewards(rewards: list[tuple[str, str]]) -> None:
    labels = [label for label, _ in rewards]
    names = distinct_labels(labels, [source for _, source in rewards])
    assert len({*names}) == len(rewards)
    if len({*labels}) == len(labels):
        assert names == labels


def test_as_few_folders_as_tell_them_apart() -> None:
    folders = ["runs/x/one/c", "runs/x/two/c", "runs/y/two/c", "c", "d"]
    assert distinct_labels(["c", "c", "c", "c", "d"], folders) == ["one/c", "x/two/c", "y/two/c", f"{Path.cwd().name}/c", "d"]
    assert distinct_labels(["c", "c"], ["c", "./c"]) == ["c", "c (2)"]
