"""`cdn-tune data`: a folder examined, features converted, a synthetic dataset planted."""
