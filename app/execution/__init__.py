"""Running programs: the executor interface and its local implementation."""
