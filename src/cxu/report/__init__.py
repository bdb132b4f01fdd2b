"""What a reader of a paper needs to know of a table: flow of exclusions, methods, references, sensitivity."""
