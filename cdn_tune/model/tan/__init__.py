"""2D-TAN: mean clips, temporal map, fusion with the query, static convolutions (arXiv 1912.03590)."""
