"""`cdn-tune data`: a folder examined, features extracted or converted, queries encoded, data planted, videos drawn."""
