"""`cdn-tune data`: a folder examined, features converted, a synthetic dataset planted."""

from cdn_tune.cli.app import Commands, app

data_app = Commands(
    help="Look after data: examine a folder, convert features, plant a synthetic dataset.", no_args_is_help=True
)
app.add_typer(data_app, name="data")
