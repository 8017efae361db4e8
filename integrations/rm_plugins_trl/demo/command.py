"""``rm-plugins demo``. Importing it imports neither torch nor trl."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.printed import Console, echo, is_quiet
from rm_plugins.errors import MissingDependencyError


@click.command("demo", cls=Command, resuming="Start over with --overwrite.")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("rm-plugins-demo"),
    show_default=True,
    help="The output folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier run wrote into the output folder.")
@click.option("--steps", type=click.IntRange(min=1), default=150, show_default=True, help="Steps of GRPO.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data, the models and the sampling.")
@click.option(
    "--dataset",
    help="Your own preference data instead of the generated one: a JSON Lines or Parquet file, or the name of a dataset, with prompt, "
    "chosen and rejected. Its true reward is unknown, so only the learned one is shown.",
)
@click.option(
    "--pairs", type=click.IntRange(min=2), default=2_000, show_default=True, help="Use at most this many pairs of --dataset."
)
@click.option("--model", help="Folder or hub id of the model to train the reward from; by default a tiny model is created.")
@click.option("--policy", help="Folder or hub id of the policy, used without warm-up; by default a tiny policy is created.")
def demo(
    output_dir: Path,
    overwrite: bool,
    steps: int,
    seed: int,
    dataset: str | None,
    pairs: int,
    model: str | None,
    policy: str | None,
) -> None:
    """Train a reward model and a policy against it, and show how the true reward rises.

    By default everything is generated offline, in a few minutes on two cores. The data are requests, answers whose true (gold) reward
    is known, and noisy preferences. A small reward model is trained on them, and a small policy is trained with GRPO against that
    reward model. You can replace the data and both models with your own.
    """
    if find_spec("matplotlib") is None:
        raise MissingDependencyError("The picture of the rewards needs matplotlib: pip install 'rm-plugins[demo]'.")
    from rm_plugins.data.row_files import check_source
    from rm_plugins_trl.demo.output_folder import check_free

    check_free(output_dir, overwrite)
    if dataset is not None:
        check_source(dataset)

    from rm_plugins_trl.demo.run import run_demo

    path = run_demo(
        output_dir,
        overwrite=overwrite,
        steps=steps,
        seed=seed,
        dataset=dataset,
        pairs=pairs,
        model=model,
        policy=policy,
        console=Console(quiet=is_quiet()),
    )
    if is_quiet():
        echo(str(path))
