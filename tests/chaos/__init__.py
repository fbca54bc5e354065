"""Faults injected into a real run, one after another, and the count of what was lost."""
