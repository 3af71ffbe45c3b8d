"""The command line: `fxquant quantize`, `evaluate`, `inspect`, `compare`, `export`, `demo`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fxquant.errors import FxQuantError
from fxquant.extras import needs_extra
from fxquant.files import need_folder

if TYPE_CHECKING:
    import typer


_MODEL = "An architecture of torchvision, or module:function that returns a network."
_WEIGHTS = "A safetensors file, or a state_dict that torch.save wrote."
_DATA = "A folder with a folder of images for each class, or 'digits'."
_SAVED = "What `fxquant quantize --out` saved."
_CLIP = "none, average, std, percentile, kl, mse, aciq-laplace or aciq-gauss."


def main() -> None:
    """Run the command line. An error of ours is one message, without a traceback; so is one of the
    system's, such as a full disk.
    """
    try:
        _app()()
    except (FxQuantError, OSError) as error:
        print(f"fxquant: {error}", file=sys.stderr)
        sys.exit(1)


def _app() -> "typer.Typer":
    with needs_extra("cli"):
        import typer
    app = typer.Typer(add_completion=False, no_args_is_help=True)

    @app.callback()  # without one, Typer makes a single command the whole app
    def fxquant() -> None:
        """Quantization of PyTorch networks by rewriting torch.fx graphs."""

    _add_quantize(app)
    _add_evaluate(app)
    _add_inspect(app)
    _add_compare(app)
    _add_export(app)
    _add_demo(app)
    return app


def _option(*names: str, help: str) -> Any:
    """An option of which --help shows no default: where it is not given, nothing is said."""
    import typer

    return typer.Option(*names, help=help, show_default=False)


def _add_quantize(app: "typer.Typer") -> None:  # long: a command's signature is its --help
    import typer

    @app.command()
    def quantize(  # long: likewise
        model: Annotated[str, typer.Argument(help=_MODEL)],
        weights: Annotated[Path | None, _option("--weights", help=_WEIGHTS)] = None,
        classes: Annotated[int | None, _option("--classes", help="Of an architecture.")] = None,
        data: Annotated[str | None, _option("--data", help=_DATA)] = None,
        size: Annotated[int, typer.Option(help="Height and width of images.")] = 224,
        channels: Annotated[int, typer.Option(help="Of images, 1 or 3.")] = 3,
        batch: Annotated[int, typer.Option(help="Images at a time.")] = 64,
        limit: Annotated[int | None, _option("--limit", help="Use so many images at most.")] = None,
        calibrate: Annotated[float, typer.Option(help="Share of the data for ranges.")] = 0.05,
        stats: Annotated[Path | None, _option("--stats", help="Ranges of a file instead.")] = None,
        save_stats: Annotated[
            Path | None, _option("--save-stats", help="Write what was seen.")
        ] = None,
        config: Annotated[Path | None, _option("--config", help="YAML, call by call.")] = None,
        preset: Annotated[str | None, _option("--preset", help="Where to start from.")] = None,
        mode: Annotated[
            str | None, _option("--mode", help="static, dynamic or weight-only.")
        ] = None,
        activations: Annotated[
            str | None, _option("--activations", help="unsigned, signed or symmetric integers.")
        ] = None,
        activation_bits: Annotated[
            int | None, _option("--activation-bits", help="2 to 16.")
        ] = None,
        weight_bits: Annotated[int | None, _option("--weight-bits", help="1 to 16.")] = None,
        accumulator_bits: Annotated[
            int | None, _option("--accumulator-bits", help="16 to 32; sums are proved to fit.")
        ] = None,
        first_last_bits: Annotated[
            int | None, _option("--first-last-bits", help="Of the first and the last layers.")
        ] = None,
        multiplier_bits: Annotated[
            int | None, _option("--multiplier-bits", help="Of the integers that rescale results.")
        ] = None,
        rounding: Annotated[
            str | None, _option("--rounding", help="half_up, …; fp32_rne for ONNX in QDQ form.")
        ] = None,
        per_channel: Annotated[
            bool | None, typer.Option("--per-channel/--per-tensor", help="Scales of weights.")
        ] = None,
        clip: Annotated[str | None, _option("--clip", help=_CLIP)] = None,
        stds: Annotated[float | None, _option("--stds", help="Of --clip std.")] = None,
        percent: Annotated[float | None, _option("--percent", help="Of --clip percentile.")] = None,
        no_clip: Annotated[
            list[str] | None, _option("--no-clip", help="Paths of modules that are not clipped.")
        ] = None,
        keep_float: Annotated[
            list[str] | None, _option("--keep-float", help="Paths of modules that stay in float.")
        ] = None,
        equalize: Annotated[
            bool | None, typer.Option("--equalize/--no-equalize", help="Across layers, first.")
        ] = None,
        evaluate: Annotated[
            bool, typer.Option("--evaluate/--no-evaluate", help="Float and integers, side by side.")
        ] = True,
        out: Annotated[Path | None, _option("--out", help="Save the integer network.")] = None,
        save_config: Annotated[
            Path | None, _option("--save-config", help="Write the configuration as YAML.")
        ] = None,
    ) -> None:
        """Quantize a trained network after training, evaluate it, save it.

        Examples:

            fxquant quantize resnet18 --weights w.pth --data val/ --out int8.safetensors

            fxquant quantize resnet18 --weights w.pth --data val/ --clip percentile --percent 99.9

            fxquant quantize shufflenet_v2_x1_0 --weights w.pth --data val/ --save-stats stats.yaml

            fxquant quantize my_nets:small --data digits --size 32 --channels 1 --weight-bits 4

            fxquant quantize resnet18 --weights w.pth --stats stats.yaml --no-evaluate
        """
        from fxquant.command.data import Images
        from fxquant.command.models import load_weights, model_named
        from fxquant.command.options import Options
        from fxquant.command.quantize import Job, run
        from fxquant.config_file import save_config as write_config

        for path in (out, save_stats, save_config):
            if path is not None:
                need_folder(path)
        options = Options(
            config=config, preset=preset, mode=mode, activations=activations,
            activation_bits=activation_bits, weight_bits=weight_bits,
            accumulator_bits=accumulator_bits, first_last_bits=first_last_bits,
            multiplier_bits=multiplier_bits, rounding=rounding, per_channel=per_channel, clip=clip,
            stds=stds, percent=percent, no_clip=tuple(no_clip or ()),
            keep_float=tuple(keep_float or ()), equalize=equalize,
        )
        wanted = options.to_config()
        images = None if data is None else Images(data, size, channels, batch, limit)
        network = model_named(model, classes)
        if weights is not None:
            load_weights(network, weights)
        done = run(Job(network, wanted, images, calibrate, stats, save_stats, evaluate))
        if done.before is not None:
            print(f"float     {done.before}, {done.float_bytes:,} bytes")
        print(f"integers  {done.after or 'not evaluated'}, {done.integer_bytes:,} bytes")
        if save_config is not None:
            write_config(wanted, save_config)
        if out is not None:
            from fxquant.saved import save

            save(done.quantized, out)
            print(f"saved in {out}")


def _add_evaluate(app: "typer.Typer") -> None:
    import typer

    @app.command()
    def evaluate(
        model: Annotated[str, typer.Argument(help=f"{_SAVED} Or: {_MODEL}")],
        data: Annotated[str, typer.Option(help=_DATA)],
        weights: Annotated[Path | None, typer.Option(help=_WEIGHTS)] = None,
        classes: Annotated[int | None, typer.Option(help="Of an architecture.")] = None,
        size: Annotated[int, typer.Option(help="Height and width of images.")] = 224,
        channels: Annotated[int, typer.Option(help="Of images, 1 or 3.")] = 3,
        batch: Annotated[int, typer.Option(help="Images at a time.")] = 64,
        limit: Annotated[int | None, typer.Option(help="Use so many images at most.")] = None,
    ) -> None:
        """Loss, top-1 and top-5 of a network, as the images go by.

        Examples:

            fxquant evaluate int8.safetensors --data val/

            fxquant evaluate resnet18 --weights resnet18.pth --data val/ --limit 5000
        """
        from fxquant.command.data import Images
        from fxquant.command.models import load_weights, model_named
        from fxquant.command.quantize import progress, scores

        images = Images(data, size, channels, batch, limit)
        network = _saved(model) if Path(model).is_file() else model_named(model, classes)
        if weights is not None:
            load_weights(network, weights)
        with progress() as bars:
            result = scores(network, images, bars, "evaluating")
        print(result)


def _add_inspect(app: "typer.Typer") -> None:
    import typer

    @app.command()
    def inspect(
        network: Annotated[Path, typer.Argument(help=_SAVED)],
        passes: Annotated[bool, typer.Option(help="What each pass changed, too.")] = False,
        counts: Annotated[bool, typer.Option(help="Bytes and operations, too.")] = False,
        size: Annotated[int, typer.Option(help="Height and width of images.")] = 224,
        channels: Annotated[int, typer.Option(help="Of images.")] = 3,
    ) -> None:
        """Every integer of a saved network, and whether every sum is proved to fit.

        Examples:

            fxquant inspect int8.safetensors

            fxquant inspect int8.safetensors --passes

            fxquant inspect int8.safetensors --counts --size 32 --channels 1
        """
        from fxquant.audit import audit
        from fxquant.explain import explain

        loaded = _saved(str(network))
        print(audit(loaded))
        if passes:
            print("", explain(loaded), sep="\n")
        if counts:
            from fxquant.command.export import images_for
            from fxquant.export import count_operations

            images = images_for(None, size, channels, 1)
            print("", count_operations(loaded, images), sep="\n")


def _add_compare(app: "typer.Typer") -> None:
    import typer

    @app.command()
    def compare(
        model: Annotated[str, typer.Argument(help=_MODEL)],
        network: Annotated[Path, typer.Argument(help=_SAVED)],
        data: Annotated[str, typer.Option(help=_DATA)],
        weights: Annotated[Path | None, typer.Option(help=_WEIGHTS)] = None,
        classes: Annotated[int | None, typer.Option(help="Of an architecture.")] = None,
        size: Annotated[int, typer.Option(help="Height and width of images.")] = 224,
        channels: Annotated[int, typer.Option(help="Of images, 1 or 3.")] = 3,
        limit: Annotated[int, typer.Option(help="Use so many images.")] = 16,
    ) -> None:
        """Where a saved network parts from the float one, node by node.

        Examples:

            fxquant compare resnet18 int8.safetensors --weights w.pth --data val/
        """
        from fxquant.command.data import Images
        from fxquant.command.models import load_weights, model_named
        from fxquant.see.compare import compare as measure

        reference = model_named(model, classes)
        if weights is not None:
            load_weights(reference, weights)
        images = Images(data, size, channels, limit, limit)
        print(measure(reference, _saved(str(network)), [batch.images for batch in images]))


def _add_export(app: "typer.Typer") -> None:
    import typer

    @app.command()
    def export(
        network: Annotated[Path, typer.Argument(help=_SAVED)],
        out: Annotated[Path, typer.Argument(help="A file .onnx, .tflite or .pt2, or a folder.")],
        form: Annotated[
            str | None, _option("--form", help="Of ONNX: operators (the default) or qdq.")
        ] = None,
        c: Annotated[bool, _option("--c", help="In a folder: C99, too.")] = False,
        verify: Annotated[bool, _option("--verify", help="Run the file, and compare.")] = False,
        batch: Annotated[int | None, _option("--batch", help="Of this size only.")] = None,
        data: Annotated[
            str | None, _option("--data", help=f"{_DATA} Random images if not.")
        ] = None,
        size: Annotated[int, typer.Option(help="Height and width of images.")] = 224,
        channels: Annotated[int, typer.Option(help="Of images.")] = 3,
        limit: Annotated[int, typer.Option(help="Try, or keep, so many images.")] = 8,
    ) -> None:
        """Write a saved network as ONNX, for LiteRT, for torch.export, or as a golden model.

        Examples:

            fxquant export int8.safetensors int8.onnx --verify

            fxquant export int8.safetensors quick.onnx --form qdq

            fxquant export int8.safetensors int8.tflite --verify

            fxquant export int8.safetensors int8.pt2

            fxquant export int8.safetensors golden --c --data digits --size 32 --channels 1
        """
        from fxquant.command.export import Export, images_for
        from fxquant.command.quantize import progress

        wanted = Export(out, form, batch, c, verify)
        loaded, images = _saved(str(network)), images_for(data, size, channels, limit)
        with progress() as bars:
            bars.add_task(f"writing {out.name}", total=None, text="")
            found = wanted.write(loaded, images)
        print(f"written to {out}", *filter(None, [found]), sep="\n")


def _saved(path: str) -> Any:
    from fxquant.saved import load

    return load(path)


def _add_demo(app: "typer.Typer") -> None:
    import typer

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


if __name__ == "__main__":
    main()
