"""Rectified-flow mathematics: schedules, corruption, losses, samplers. Knows no network."""
