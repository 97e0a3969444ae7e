"""The towers, as Flax Linen modules: inherited (Wan, umT5) and grafted."""
