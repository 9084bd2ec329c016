"""The page and the figures of a run, drawn from its tables."""
