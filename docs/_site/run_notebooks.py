"""Runs notebooks from top to bottom and keeps their small outputs in them: ``python run_notebooks.py NOTEBOOK...``.

What a training logs and what goes to the error stream (progress, warnings) is left out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    """Run a notebook in a folder of its own, and write it back with its outputs."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    with TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=3_600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = joined([output for output in cell.outputs if is_kept(output, trains=".train()" in cell.source)])
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def is_kept(output: Any, *, trains: bool) -> bool:
    """Whether an output is a cell's last value, or printed by a cell that trains nothing."""
    if output.output_type == "stream":
        return output.name == "stdout" and not trains
    return output.output_type == "execute_result"


def joined(outputs: list[Any]) -> list[Any]:
    """The outputs with what was printed in several pieces as one."""
    kept: list[Any] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))
