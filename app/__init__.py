"""The service: API, worker, and everything on one machine (`up`)."""
