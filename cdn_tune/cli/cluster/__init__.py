"""`cdn-tune cluster`: what a cluster has, and commands that run on it as jobs."""
