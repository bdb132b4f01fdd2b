"""Measurements of organs."""
