"""Muon, parameter rules, schedules and averaging, as optax transformations."""
