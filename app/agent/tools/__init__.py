"""The tools that a step can name."""
