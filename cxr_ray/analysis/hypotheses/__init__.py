"""The hypotheses of the original study, each with effect, interval, test and a verdict by one rule.

What is missing makes a hypothesis undecided, and the reason says what.
"""
