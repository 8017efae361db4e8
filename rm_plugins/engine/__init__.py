"""The engine: plans which tokens run together, runs them once, and keeps scores."""

from rm_plugins.engine.plan import Plan, plan_batches

__all__ = ["Plan", "plan_batches"]
