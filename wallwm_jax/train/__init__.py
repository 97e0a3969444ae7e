"""Stages as data, the step, the loop and the checkpoint."""
