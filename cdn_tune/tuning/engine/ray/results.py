"""What a trial and Ray Tune exchange: the keys of a trial's configuration and of its results."""

NUMBER, PARAMETERS, AVOID, DECISIONS = "number", "parameters", "avoid", "decisions"  # of a trial's configuration
REPORT, SECONDS = "report", "trial_seconds"  # of a result: an EpochReport (Tune takes dicts apart), and seconds so far
FAILURE, FAILURE_KIND, HALT, STOPPED, LOST = "failure", "failure_kind", "halt", "stopped", "lost"  # the last a Loss
