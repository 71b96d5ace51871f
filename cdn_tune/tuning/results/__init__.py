"""Reading a search: record, leaderboard, status, importance."""
