"""The study: what is tried next, what goes on, what a failure means."""
