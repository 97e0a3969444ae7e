"""Dataset builders and cards; run from the repository's root, never installed."""
