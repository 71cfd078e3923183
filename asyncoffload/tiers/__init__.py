"""Places behind the primary tier that keep blocks."""
