"""``python -m rm_plugins`` is the ``rm-plugins`` program."""

from rm_plugins.cli import main

main(prog_name="rm-plugins")
