"""Commands of ``cxr-ray`` beside sweeps, verdicts, verification and the report: arguments and what they print."""
