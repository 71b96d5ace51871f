"""`cdn-tune data`: a folder examined, features converted, queries encoded, a synthetic dataset planted."""
