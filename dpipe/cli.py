"""The ``dpipe`` command."""

from __future__ import annotations

import typer

from dpipe.cli_common import VersionOption
from dpipe.cli_errors import OneLineUsageGroup
from dpipe.cli_options import several_values
from dpipe.commands import bench, check, convert, preview, stats, transcode

app = typer.Typer(
    cls=OneLineUsageGroup,
    help="Convert data sets into COCO JSON, check them, and look at what a trainer will see.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(version: VersionOption = False) -> None:
    pass


app.add_typer(convert.app, name="convert")
app.command("preview")(preview.preview)
app.command("transcode", epilog=transcode.EPILOG)(transcode.transcode)
app.command("stats")(stats.stats)
app.command("check")(check.check)
app.command("bench", cls=several_values({"--threads": str.isdecimal}))(bench.bench)


def main() -> None:
    """Runs the command line."""
    app()
