"""`cdn-tune data`: a folder examined, features converted, queries encoded, data planted, videos drawn."""
