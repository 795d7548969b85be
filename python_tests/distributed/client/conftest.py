"""Tests on Ray are collected where it is installed; the marker ``scale`` asks for them."""

from __future__ import annotations

import importlib.util

collect_ignore = [] if importlib.util.find_spec("ray") else ["test_ray.py"]
