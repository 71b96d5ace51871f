"""Ray Tune as the engine of a search."""
