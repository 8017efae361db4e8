"""Servers of other projects, one file each, which says how it is started."""
