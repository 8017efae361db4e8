"""Kills commands at random moments, starts them again until they are done, and compares what they wrote: `python -m tests.kills --help`."""
