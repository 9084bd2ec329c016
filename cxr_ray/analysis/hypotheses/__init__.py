"""The hypotheses of the original study, each with effect, interval, test and a verdict by one rule.

What is missing makes a verdict inconclusive or not applicable, and the reason says what.
"""
