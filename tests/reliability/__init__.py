"""The catalogue of what may go wrong: a module a kind, a case a line in ``docs/reliability.md``."""
