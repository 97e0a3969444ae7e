"""One ml_collections file per experiment."""
