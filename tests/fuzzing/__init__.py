"""Hostile input: what each reader must do with any bytes at all. ``scripts/fuzz.py`` looks for bytes that break it."""
