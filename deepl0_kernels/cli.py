"""The command ``deepl0``."""

# Annotations are evaluated here: typer reads them, and its types are imported inside a function.
import sys


def main() -> None:
    """Entry point; says what to install when typer is missing."""
    from ._optional import require

    try:
        require("typer", "the deepl0 command")
    except ModuleNotFoundError as error:
        sys.exit(str(error))
    _app()()


def _app():
    import json
    from dataclasses import replace
    from pathlib import Path
    from typing import Annotated

    import typer

    app = typer.Typer(
        help="Fused operators for deep l0 encoders.", no_args_is_help=True, add_completion=False
    )

    @app.command()
    def demo(
        out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("deepl0-demo"),
        seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
        quick: Annotated[bool, typer.Option(help="A run of seconds, without a verdict.")] = False,
        progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    ) -> None:
        """Train the encoders on real digits and race them against the iterative solver.

        Exits with 1 when an encoder does not beat ten iterations.
        """
        from .experiments import demo as experiment

        config = experiment.Config(seed=seed)
        if quick:
            config = replace(config.quickened(), seed=seed)
        try:
            result = experiment.run(config, out, progress=progress and sys.stderr.isatty())
        except (ModuleNotFoundError, OSError) as error:
            typer.echo(f"deepl0 demo: {error}", err=True)
            raise typer.Exit(2) from None
        typer.echo(experiment.table(result))
        typer.echo(f"wrote record.json, table.txt, figure.png, figure.svg to {out}")
        if not (result["claim_holds"] or quick):
            raise typer.Exit(1)

    @app.command()
    def info() -> None:
        """Print how the extension was built and which backend serves which operator."""
        import torch

        import deepl0_kernels as dk

        report = {
            "deepl0_kernels": dk.__version__,
            "torch": torch.__version__,
            "build": dk.build_info(),
            "backends": dk.backends(),
        }
        typer.echo(json.dumps(report, indent=2))

    return app


if __name__ == "__main__":
    main()
