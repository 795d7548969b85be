"""Experiments that run from one command; each writes a folder: record, figures, table."""
