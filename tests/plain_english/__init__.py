"""Finds sentences that are hard to read, in documentation, docstrings, messages and pages.

``python -m tests.plain_english [PATH ...]`` lists them, one per line, as ``FILE:LINE: PATTERN: TEXT (write: WHAT TO WRITE INSTEAD)``.
A path is a file or a folder. Without a path, everything that the test covers is read.
"""
