"""Benchmark suites, one file per operator, and the drawing of their figures.

``python -m bench`` runs all, rewrites ``bench/records/cpu.csv`` and draws the figures from it.
"""
