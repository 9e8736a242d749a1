"""LPM-Bench: cases, metrics with floor and ceiling, votes and reports."""
