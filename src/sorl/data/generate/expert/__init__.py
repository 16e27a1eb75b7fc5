"""Experts that walk: trained here by online SAC, kept as files, run in plain NumPy."""
