"""Mesh, logical-axis rules and sharded initialisation."""
