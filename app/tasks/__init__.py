"""Typed tasks: what a `tasks.yaml` declares, and how values are checked against it."""
