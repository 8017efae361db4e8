"""Attacks on a real server process on loopback: what each may cost is stated, and measured.

Run them with ``python -m tests.attacks``; it prints a table and ends with status 1 where a promise is broken.
"""
