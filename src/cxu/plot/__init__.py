"""Figures, with matplotlib: the optional extra ``plot``. A module a subject; ``figure`` has what they share."""
