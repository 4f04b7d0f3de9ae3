"""Everything that talks to Redis. The only importer of the redis library."""
