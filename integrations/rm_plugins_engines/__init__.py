"""Rewards in engines other than TRL: verl, OpenRLHF, ms-swift, slime, NeMo Gym, NeMo-RL, AReaL and verifiers, one file each.

Each file has the engine's own signature around any spec. ``rm-plugins adapter ENGINE SPEC -o reward.py`` writes the small file that the
engine is pointed at. An engine is imported only by what needs its classes, and only where it is installed.
"""

__all__: list[str] = []
