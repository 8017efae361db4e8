"""Real clients and servers of other projects, against ours; ``make test-peers`` installs them and runs these tests.

- ``clients/``: one script a client, run by the python of the client's environment and asked line by line (`client.py`);
- ``servers/``: one file a server, which says how it is started (`server.py`); ``hosts/`` has what such a server loads of ours;
- ``requirements/``: one file an environment (`environments.py`); those that need different versions do not share one;
- ``build/peers/``: what was compared and how far apart it was (`facts.py`), of which `table.py` makes the table in ``docs/peers.md``.
"""
