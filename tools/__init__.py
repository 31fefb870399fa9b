"""Thin entry points that the project's plan names: ``python -m tools.<name>``."""
