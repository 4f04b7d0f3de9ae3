"""What users import: a client of the HTTP API."""
