"""TRL's public tests of its trainers, run on our classes: ``python -m tests.trl_own_tests CHECKOUT``.

CHECKOUT is a folder with TRL's repository, of which only ``tests/`` and the pytest settings are read. The installed TRL is tested.
"""
