"""A virtual engine: a search's real decisions over given learning curves, in one process, on a virtual clock."""
