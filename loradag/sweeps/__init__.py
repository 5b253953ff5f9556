"""Sweeps: jobs composed and checked, each run in a workspace of its own, compared at the end."""
