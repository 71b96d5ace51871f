"""Opens a search's run folder, analyses it with Optuna and measures its best model on the test split.

`python examples/open_run.py [RUN]`, by default what `examples/search.py` has left.
"""

import sys

import cdn_tune

run = cdn_tune.open_run(sys.argv[1] if len(sys.argv) > 1 else "runs/example-search")
print(run.leaderboard())
for trial in run.study.best_trials:
    print(f"trial {trial.number} of the Optuna study: {trial.params}")

result = run.evaluation or run.evaluate()  # every call of `evaluate` opens the test split, and is counted
print({name: round(value, 4) for name, value in result["metrics"].items()})
print(run.predictions())
