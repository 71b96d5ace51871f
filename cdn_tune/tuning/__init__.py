"""The search: an Optuna study that decides and remembers, Ray Tune that places and runs."""
