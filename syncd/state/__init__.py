"""Everything syncd remembers, in PostgreSQL."""
