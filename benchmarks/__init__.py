"""Measurements: every number that is quoted comes from one of these."""
