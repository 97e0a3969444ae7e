"""Simulators and scripted experts behind one small interface."""
