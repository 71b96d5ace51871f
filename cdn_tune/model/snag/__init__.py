"""SnAG: text and video encoders, a feature pyramid, late fusion, heads over points, losses, inference."""
