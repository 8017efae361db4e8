"""``rm-plugins adapter``."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from rm_plugins.cli.command import Command
from rm_plugins.cli.printed import say
from rm_plugins.errors import OutputError, SpecError, did_you_mean

ENGINES = ("areal", "nemo-gym", "nemo-rl", "openrlhf", "slime", "swift", "verifiers", "verl")

_PACKAGES = (
    *("areal", "nemo_gym", "nemo_rl", "openrlhf", "slime", "swift", "verifiers", "verl"),
    *("datasets", "fastapi", "numpy", "ray", "rm_plugins", "rm_plugins_engines", "torch", "transformers", "trl", "vllm"),
)
"""Packages that a file of the same name would hide from the engine, which puts the file's folder on its Python path."""


def _choice(_: click.Context, parameter: click.Parameter, value: str) -> str | float:
    if value in ("raise", "drop"):
        return value
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither raise nor drop nor a number.", param=parameter) from None


def _engine(_: click.Context, parameter: click.Parameter, value: str) -> str:
    name = value.lower().replace("_", "-").replace("ms-swift", "swift")
    if name not in ENGINES:
        raise click.BadParameter(f"{value!r} is not an engine. {did_you_mean(name, ENGINES)}", param=parameter)
    return name


@click.command("adapter", cls=Command)
@click.argument("engine", callback=_engine, metavar="ENGINE")
@click.argument("spec")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write, such as reward.py.")
@click.option(
    "--no-reward",
    default="raise",
    show_default=True,
    callback=_choice,
    metavar="raise|drop|NUMBER",
    help="How to treat samples that the reward fails on or abstains from. drop: slime and nemo-gym only.",
)
@click.option(
    "--prompt",
    metavar="SOURCE",
    help="Where the prompt is, if the engine does not hand over messages: auto, text, rendered, none, or column:PATH.",
)
@click.option("--detail", "details", multiple=True, metavar="NAME", help="A detail to log, such as member/0; repeatable.")
@click.option("--no-check", is_flag=True, help="Do not load SPEC first, for models that this machine has no memory for.")
@click.option("--overwrite", is_flag=True, help="Replace the output.")
def adapter(
    engine: str,
    spec: str,
    output: Path,
    no_reward: Any,
    prompt: str | None,
    details: tuple[str, ...],
    no_check: bool,
    overwrite: bool,
) -> None:
    """Write the small file that gives the reward SPEC to another engine, with the engine's own flags in its first lines.

    ENGINE is areal, nemo-gym, nemo-rl, openrlhf, slime, swift (ms-swift), verifiers or verl.

    SPEC is loaded first, and the file has its absolute path. All machines that run rewards need rm-plugins and the files of the spec, or
    the spec is the URL of `rm-plugins serve`. If the reward's functions are in the working directory, the file adds that folder to the
    Python path.
    """
    from rm_plugins.files import check_output, would_replace, write_atomically
    from rm_plugins.named_rewards import named_rewards, named_rewards_file
    from rm_plugins.server.served_reward import ServedReward
    from rm_plugins_engines.adapter_files import ENGINES as FILES
    from rm_plugins_engines.adapter_files import adapter_text
    from rm_plugins_engines.engine_reward import check_reward, checked_no_reward
    from rm_plugins_engines.shared_reward import is_url, located

    path = output.absolute()
    if path.suffix != ".py" or not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise click.UsageError(f"--output {output} must be a Python module: a name such as reward.py.")
    if path.stem in _PACKAGES or path.stem in sys.stdlib_module_names:
        raise click.UsageError(f"--output {output} would hide the package {path.stem!r} from the engine. Choose another name.")
    if not str(path).isprintable():
        raise click.UsageError(f"--output {str(output)!r} has a character that cannot be shown in the file's first lines.")
    facts = FILES[engine]
    checked_no_reward(no_reward, facts.engine, facts.drops)
    written = str(located(spec))
    settings = {"no_reward": no_reward, "prompt": prompt, "details": details}
    text = adapter_text(engine, written, path, **settings)
    check_output(path)
    if would_replace(path) and not overwrite:
        raise OutputError(f"{output} exists already. Name another output with -o, or replace it with --overwrite.")
    if not is_url(written) and not Path(written).is_absolute() and written in named_rewards():
        raise SpecError(
            f"{spec!r} is a name in {named_rewards_file()}, which engines do not find in their own working directory. Write the spec "
            "of this reward into a file of its own, and name that file."
        )
    if not no_check or is_url(written):  # the URL of a server is checked without memory
        before = set(sys.modules)
        reward = ServedReward.load(written)
        check_reward(reward.facts, facts.engine, groups=facts.groups, in_step=facts.in_step)
        reward.close()
        if _from_here(set(sys.modules) - before):
            text = adapter_text(engine, written, path, **settings, python_path=str(Path.cwd()))
    write_atomically(path, text)
    say(f"Wrote {output}. Its first lines have the settings of {facts.engine}.")


def _from_here(modules: Collection[str]) -> bool:
    """Whether a module was imported from the working directory."""
    specs = [getattr(sys.modules[name], "__spec__", None) for name in modules if "." not in name]
    places = [place for spec in specs if spec for place in spec.submodule_search_locations or [spec.origin or ""]]
    return any(Path(place).parent == Path.cwd() for place in places)
