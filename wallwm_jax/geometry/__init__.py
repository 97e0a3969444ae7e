"""Cameras, sight cones and tubes: pure functions."""
