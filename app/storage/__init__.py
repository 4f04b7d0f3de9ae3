"""A run's files: one protocol, two stores."""
