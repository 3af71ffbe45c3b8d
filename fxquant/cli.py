"""The command line: `fxquant demo`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fxquant.errors import FxQuantError
from fxquant.extras import needs_extra

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command line. An error of ours is one message, without a traceback."""
    try:
        _app()()
    except FxQuantError as error:
        print(f"fxquant: {error}", file=sys.stderr)
        sys.exit(1)


def _app() -> "typer.Typer":
    with needs_extra("demo"):
        import typer
    app = typer.Typer(add_completion=False, no_args_is_help=True)

    @app.callback()  # without one, Typer makes a single command the whole app
    def fxquant() -> None:
        """Quantization of PyTorch networks by rewriting torch.fx graphs."""

    @app.command()
    def demo(
        out: Annotated[Path, typer.Option(help="Folder for pictures and summary.json.")] = Path(
            "fxquant-demo"
        ),
        seed: Annotated[int, typer.Option(help="Of the split, the weights, the batches.")] = 0,
        quick: Annotated[bool, typer.Option("--quick", help="Seconds, and poor accuracy.")] = False,
    ) -> None:
        """Train a small DARTS network on real handwriting, convert it to integers, compare.

        Examples:

            fxquant demo

            fxquant demo --out /tmp/pictures --seed 1

            fxquant demo --quick
        """
        from dataclasses import replace

        from fxquant.demo import FULL, QUICK
        from fxquant.demo import demo as run

        outcome = run(out, replace(QUICK if quick else FULL, seed=seed))
        if outcome.mismatches:
            raise typer.Exit(code=1)

    return app


if __name__ == "__main__":
    main()
