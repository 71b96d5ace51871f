"""MMN: temporal map and sentence matched by cosine, against other sentences and other moments (arXiv 2109.04872)."""
