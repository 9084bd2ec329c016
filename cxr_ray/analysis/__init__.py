"""From rows per image to statements: intervals, tests, summaries and hypotheses."""
