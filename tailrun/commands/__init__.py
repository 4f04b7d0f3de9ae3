"""The commands of the client: each talks to the HTTP API."""
