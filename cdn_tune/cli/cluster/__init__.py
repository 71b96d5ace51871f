"""`cdn-tune cluster`: what a cluster has, and commands that run on it as jobs."""

from cdn_tune.cli.app import Commands, app

cluster_app = Commands(
    help="See what a Ray cluster has; run searches on it as jobs, and fetch what they found.", no_args_is_help=True
)
app.add_typer(cluster_app, name="cluster")
