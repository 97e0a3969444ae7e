"""The canonical Episode record: what every robot dataset is turned into."""
