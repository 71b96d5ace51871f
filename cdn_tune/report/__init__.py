"""The report: everything a run recorded, as one HTML page that needs nothing else."""
