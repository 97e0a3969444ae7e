"""The Meta-World event dataset."""
