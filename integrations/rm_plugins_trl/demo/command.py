"""``rm-plugins demo``. Importing it imports neither torch nor trl."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--output-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("rm-plugins-demo"),
    show_default=True,
    help="Where everything is written.",
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier run wrote into the output folder.")
@click.option("--steps", type=click.IntRange(min=1), default=150, show_default=True, help="Steps of GRPO.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the world, the models and the sampling.")
@click.option(
    "--dataset",
    help="Your own preference data instead of the generated world: a JSON Lines or Parquet file, or the name of a dataset, with "
    "prompt, chosen and rejected. Its true reward is not known, so the learned one is shown alone.",
)
@click.option("--pairs", type=click.IntRange(min=2), default=2_000, show_default=True, help="Pairs read of --dataset at most.")
@click.option(
    "--model", help="The folder or id of the model the reward is trained from, instead of a tiny one made on the spot."
)
@click.option("--policy", help="The folder or id of the policy, instead of a tiny one; it is used as it is, without a warm-up.")
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
    """Train a reward model and a policy against it, and show the true reward rising.

    By default everything is made on the spot, offline, in a few minutes on two cores: a world of requests and answers in which
    the true (gold) reward is known, noisy preferences, a small reward model trained on them, and GRPO on a small policy with
    that reward. Models and data of your own take the place of any part.
    """
    from rm_plugins_trl.demo.run import run_demo

    run_demo(output_dir, overwrite=overwrite, steps=steps, seed=seed, dataset=dataset, pairs=pairs, model=model, policy=policy)
