"""A durable job queue on PostgreSQL and Trio."""

__version__ = "0.1.0"
