"""Benchmark suites, one file per operator, and the drawing of their tables.

``python -m bench`` runs all, rewrites ``bench/records/cpu.csv`` and draws the tables from it.
"""
