"""Pictures of results, all in one look."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def save_chart(path: Path, draw: Callable[[Any], None]) -> None:
    """Save a picture on white, for it to be legible on any page.

    Args:
        path: The file; its suffix is the format.
        draw: Draws on the axes that it is given.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ink, faint = "#222222", "#8a8a8a"
    settings: dict[str, Any] = {"svg.hashsalt": "gold", "font.size": 10, "figure.facecolor": "white", "axes.edgecolor": faint}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    with pyplot.rc_context(settings):  # type: ignore[arg-type]  # its keys are typed one by one
        figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e5e5", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
        pyplot.close(figure)
