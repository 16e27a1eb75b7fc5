"""Logged data: where they come from, how they are checked, and how they are sampled."""
