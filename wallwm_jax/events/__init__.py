"""Episode -> semantic events, offline: carve, caption, build, store."""
