"""Everything that talks to the database. The only importer of SQLAlchemy."""
