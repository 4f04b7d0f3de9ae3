"""A run's one sequence of events, both ends: the writer in the worker, the readers in the API."""
