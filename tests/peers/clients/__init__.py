"""Scripts that run in an environment of their own, each with the real client of another project."""
