"""`cdn-tune data`: a folder examined, features extracted or converted, queries encoded, a synthetic dataset planted."""
