"""``cxu evaluate``: one file a subcommand."""
