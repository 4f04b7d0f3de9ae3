"""Tailrun: run agent jobs on your own machines and tail them."""

VERSION = "0.1.0"
"""This release; pyproject.toml and CHANGELOG.md say the same."""
