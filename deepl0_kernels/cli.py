"""The command ``deepl0``."""

# Annotations are evaluated here: typer reads them, and its types are imported inside a function.
import math
import os
import sys


def main() -> None:
    """Entry point; says what to install when typer is missing."""
    from ._optional import require

    try:
        require("typer", "the deepl0 command")
    except ModuleNotFoundError as error:
        sys.exit(str(error))
    _app()(prog_name="deepl0")


BELOW = """\b
Examples:
  deepl0 doctor                     what was built, what serves here, a self-test
  deepl0 demo                       encoders against the solver that they unroll
  deepl0 reproduce table1 --quick   a table of the paper, in minutes
  deepl0 sae train --help           units, defaults and examples of a command

\b
Exit codes: 0 done; 1 a verdict is no (demo, doctor); 2 wrong input, which is named in a line;
130 interrupted.
Results go to standard output, progress and remarks to standard error.
"""


def _app():
    import json
    from dataclasses import replace
    from pathlib import Path
    from typing import Annotated

    import typer

    from .sae.command import app as sae
    from .sae.command import examples

    app = typer.Typer(
        help="Exact l0-sparse codes: trained encoders, solvers, sparse autoencoders.",
        epilog=BELOW,
        no_args_is_help=True,
        # Plain help: examples keep their lines. Tracebacks are Python's.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.add_typer(sae, name="sae")
    Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]

    def version(asked: bool) -> None:
        if asked:
            from .version import __version__

            typer.echo(f"deepl0_kernels {__version__}")
            raise typer.Exit

    @app.callback()
    def deepl0(
        version: Annotated[
            bool,
            typer.Option("--version", callback=version, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None: ...

    @app.command(epilog=examples("deepl0 doctor", "deepl0 doctor --json > report.json"))
    def doctor(as_json: Json = False) -> None:
        """Say what was built and serves here; a self-test.

        Every native kernel that can run here is compared with the reference. Takes
        seconds. The report can be pasted into an issue. Exits with 1 when a check differs.
        """
        from . import doctor as examination

        found = examination.examine(_remark if sys.stderr.isatty() else lambda line: None)
        typer.echo(json.dumps(found, indent=2) if as_json else examination.text(found))
        if not found["ok"]:
            raise typer.Exit(1)

    @app.command(epilog=examples("deepl0 demo", "deepl0 demo --quick --out demo-run --json"))
    def demo(
        out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the run.")] = Path(
            "deepl0-demo"
        ),
        seed: Annotated[
            int, typer.Option(min=0, metavar="N", help="Seed of everything random.")
        ] = 0,
        quick: Annotated[
            bool, typer.Option("--quick", help="A run of seconds, without a verdict.")
        ] = False,
        as_json: Json = False,
        progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    ) -> None:
        """Race trained encoders against the solver.

        Trains on real digits, and compares errors and times with the iterative solver's.
        Takes one to two minutes on two cores; times are taken on one thread. Exits with 1 when an
        encoder does not beat ten iterations.
        """
        from .paper import demo as experiment

        config = experiment.Config(seed=seed)
        if quick:
            config = replace(config.quickened(), seed=seed)
        try:
            processes = 1 if quick else len(os.sched_getaffinity(0))
            result = experiment.run(config, out, progress and sys.stderr.isatty(), processes)
        except (ModuleNotFoundError, OSError) as error:
            typer.echo(f"deepl0 demo: {error}", err=True)
            raise typer.Exit(2) from None
        typer.echo(f"wrote record.json, table.txt, figure.png, figure.svg to {out}", err=True)
        typer.echo(json.dumps(result, indent=2) if as_json else experiment.table(result).rstrip())
        if not (result["claim_holds"] or quick):
            raise typer.Exit(1)

    @app.command(
        epilog=examples(
            "deepl0 encode sae.safetensors --source vectors/ --out codes",
            "torchrun --nproc-per-node 4 -m deepl0_kernels.cli encode sae --source x --out codes",
        )
    )
    def encode(
        model: Annotated[
            Path, typer.Argument(metavar="MODEL", help="File or folder of a sparse autoencoder.")
        ],
        source: Annotated[
            list[Path],
            typer.Option(
                metavar="PATH", help=".npy, .safetensors, .parquet, or a folder; repeatable."
            ),
        ],
        out: Annotated[
            Path,
            typer.Option(metavar="FOLDER", help="Folder of the codes; gone on with if it exists."),
        ],
        column: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="The tensor or column, of a file that has several."),
        ] = None,
        values: Annotated[
            str, typer.Option(metavar="DTYPE", help="Of the values written: float32 or float16.")
        ] = "float32",
        rows: Annotated[
            int, typer.Option(min=1, metavar="N", help="Rows of the source in a file of codes.")
        ] = 1 << 20,
        memory: Annotated[
            int, typer.Option(min=1, metavar="MIB", help="MiB for the rows that are worked on.")
        ] = 256,
        ray: Annotated[bool, typer.Option("--ray", help="By a pool of actors of Ray.")] = False,
        workers: Annotated[
            int | None,
            typer.Option(min=1, metavar="N", help="Actors of Ray; by default all CPUs."),
        ] = None,
        as_json: Json = False,
        progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    ) -> None:
        """Code a data set of any size into parquet.

        The columns are indices and values; nothing needs to fit into memory. Interrupted, the same
        command goes on. Under torchrun every process takes its parts.
        """
        from functools import partial

        from . import sae
        from .distributed import encode_dataset, launched

        try:
            with launched() as ranks:
                done = encode_dataset(
                    source,
                    partial(sae.load, model),
                    out,
                    column=column,
                    values=values,
                    rows=rows,
                    memory=memory << 20,
                    engine="ray" if ray else "loop",
                    workers=workers,
                    ranks=ranks,
                    progress=progress and sys.stderr.isatty(),
                )
        except KeyboardInterrupt:
            typer.echo(f"interrupted; the same command goes on from what {out} holds", err=True)
            raise typer.Exit(130) from None
        except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
            typer.echo(f"deepl0 encode: {error}", err=True)
            raise typer.Exit(2) from None
        if as_json:
            typer.echo(json.dumps(done, indent=2))
            return
        typer.echo(
            f"{done['rows_coded']} of {done['rows']} rows coded in {done['parts_coded']} of "
            f"{done['parts']} parts in {out}"
        )

    @app.command(
        epilog=examples(
            "deepl0 reproduce table1 --quick",
            "deepl0 reproduce table1 table2 --p 128 256 --seeds 2 --out run",
            "deepl0 reproduce table1 --set lam=0.1 --out other",
            "deepl0 reproduce table1 --quick --json | jq '.codes[0]'",
        )
    )
    def reproduce(
        tables: Annotated[
            list[str], typer.Argument(metavar="TABLE", help="table1 to table7, nmse; or all.")
        ],
        p: Annotated[
            str | None,
            typer.Option(metavar="N...", help="Code sizes; by default --p 128 256 512; nmse: 500."),
        ] = None,
        seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many seeds, from 0.")] = 1,
        out: Annotated[
            Path, typer.Option(metavar="FOLDER", help="Folder of the run; resumed if it exists.")
        ] = Path("deepl0-tables"),
        quick: Annotated[
            bool, typer.Option("--quick", help="A few minutes on the shipped digits.")
        ] = False,
        settings: Annotated[
            list[str] | None,
            typer.Option(
                "--set", metavar="NAME=VALUE", help="Change a choice of the protocol; repeatable."
            ),
        ] = None,
        pareto: Annotated[bool, typer.Option(help="Race all methods at the smallest p.")] = True,
        as_json: Json = False,
        progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
    ) -> None:
        """Compute tables of the paper.

        Tables 1 to 3 are errors in % of predicted codes, 4 and 5 of classes, 6 and 7 of clusters;
        nmse, nmse20 and nmse-noiseless are in dB, of signals recovered from few measurements.
        Needs the full MNIST (DEEPL0_DATA) unless --quick, Indian Pines for table5, COIL-20 for
        table6, CMU PIE for table7. Interrupted, the same command goes on where it stopped.
        Protocol, seeds and machine stand in the files of the folder.
        """
        from .paper import report
        from .paper.tables import STUDIES

        every = [table for study in STUDIES for table in study.tables]
        if p is not None:  # an option takes one value: further sizes arrive among the tables
            p = " ".join([p, *(word for word in tables if word.isdigit())])
            tables = [word for word in tables if not word.isdigit()]
        wanted = every if tables == ["all"] else tables
        show = progress and sys.stderr.isatty()
        try:
            if unknown := [name for name in wanted if name not in every]:
                raise ValueError(
                    f"tables must be among {', '.join(every)}, got {', '.join(unknown)}"
                )
            try:
                sizes = [int(n) for n in (p or "").replace(",", " ").split()]
            except ValueError:
                raise ValueError(f"p must be integers, as in '128 256 512', got {p!r}") from None
            sizes = list(dict.fromkeys(sizes))
            if not sizes and p is not None:
                raise ValueError("sizes must not be empty")

            def choices(protocol):
                return (protocol.quickened() if quick else protocol).changed(settings or ())

            chosen = {
                study: {name: choices(study.tables[name].protocol) for name in dict.fromkeys(wanted)
                        if name in study.tables}
                for study in STUDIES
            }  # fmt: skip
            chosen = {study: protocols for study, protocols in chosen.items() if protocols}
            for study, protocols in chosen.items():
                study.check(protocols, sizes or study.sizes, range(seeds), out)
            for study, protocols in chosen.items():
                results = study.run(protocols, sizes or study.sizes, range(seeds), out, show)
                if pareto:
                    study.race(results, out, seconds=2.0 if quick else 20.0)
            report.write(out)
        except KeyboardInterrupt:
            typer.echo(f"interrupted; the same command goes on from what {out} holds", err=True)
            raise typer.Exit(130) from None
        except (ModuleNotFoundError, OSError, RuntimeError, ValueError) as error:
            typer.echo(f"deepl0 reproduce: {error}", err=True)
            raise typer.Exit(2) from None
        files = ", ".join(study.text_file for study in chosen)
        typer.echo(f"wrote results, {files}, figures and report.html to {out}", err=True)
        if as_json:
            lines = {study.name: study.lines(study.read(out)) for study in chosen}
            typer.echo(json.dumps(lines, indent=2))
            return
        for study in chosen:
            # What was chosen and where it ran is for the file.
            text = (out / study.text_file).read_text()
            typer.echo(text.partition("\n## Protocol of")[0].rstrip())

    @app.command(epilog=examples("deepl0 timing run", "deepl0 timing run --seconds 60"))
    def timing(
        folder: Annotated[
            Path, typer.Argument(metavar="FOLDER", help="Folder of a run of deepl0 reproduce.")
        ],
        seconds: Annotated[
            float, typer.Option(min=0.0, metavar="S", help="Seconds of each race.")
        ] = 20.0,
        as_json: Json = False,
    ) -> None:
        """Take the times of a run again.

        On one thread; the figures are drawn anew, no error is computed anew: for a machine that
        was busy when the run was made.
        """
        from .paper import report
        from .paper.tables import studies_in

        races = []
        try:
            if not math.isfinite(seconds):
                raise ValueError(f"seconds must be finite, got {seconds}")
            for study in studies_in(folder):
                races += study.race(study.read(folder), folder, seconds, again=True)
            report.write(folder)
        except (ModuleNotFoundError, OSError, ValueError) as error:
            typer.echo(f"deepl0 timing: {error}", err=True)
            raise typer.Exit(2) from None
        if as_json:
            typer.echo(json.dumps([found for found, _ in races], indent=2))
            return
        for _, sentence in races:
            typer.echo(f"* {sentence}")

    @app.command("report", epilog=examples("deepl0 report run"))
    def report_command(
        folder: Annotated[
            Path, typer.Argument(metavar="FOLDER", help="Folder of a run of deepl0 reproduce.")
        ],
    ) -> None:
        """Turn a run into one HTML page, print its path."""
        from .paper import report

        try:
            typer.echo(report.write(folder))
        except (ModuleNotFoundError, OSError, ValueError) as error:
            typer.echo(f"deepl0 report: {error}", err=True)
            raise typer.Exit(2) from None

    @app.command(epilog=examples("deepl0 info", "deepl0 info | jq .build.isa_active"))
    def info() -> None:
        """Print build and backends as JSON."""
        import torch

        import deepl0_kernels as dk

        report = {
            "deepl0_kernels": dk.__version__,
            "torch": torch.__version__,
            "build": dk.build_info(),
            "backends": dk.backends(),
        }
        typer.echo(json.dumps(report, indent=2))

    @app.command(
        epilog=examples("deepl0 tune", "deepl0 tune --p 512 --p 2048 --dtype bfloat16 --batch 8192")
    )
    def tune(
        p: Annotated[
            list[int] | None,
            typer.Option(
                min=1, metavar="N", help="Code size; repeatable; by default 128, 256, 512, 2048."
            ),
        ] = None,
        batch: Annotated[int, typer.Option(min=1, metavar="N", help="Samples in a call.")] = 4096,
        dtype: Annotated[
            list[str] | None,
            typer.Option(
                metavar="DTYPE",
                help="float32, bfloat16 or float16; repeatable; by default the first two.",
            ),
        ] = None,
        as_json: Json = False,
    ) -> None:
        """Tune the GPU kernels on this GPU.

        Measures their configurations and keeps the fastest of each.
        Times are microseconds a call. The result serves from then on; DEEPL0_TUNED names its file.
        """
        import torch

        from .backends import GPU

        missing = ""
        if not GPU["triton"].installed():
            missing = "triton is not installed; it comes with the GPU builds of torch"
        elif not torch.cuda.is_available():
            missing = "torch sees no GPU here, so there is nothing to measure"
        if missing:
            typer.echo(f"deepl0 tune: {missing}", err=True)
            raise typer.Exit(2)
        from . import tune as tuning
        from .triton import tuned

        known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        names = dtype or ["float32", "bfloat16"]
        if unknown := set(names) - set(known):
            raise typer.BadParameter(f"dtype must be one of {tuple(known)}, got {unknown}")
        device = torch.device("cuda", torch.cuda.current_device())
        chosen = []
        for choice in tuning.choose(
            tuning.tunable(), p or [128, 256, 512, 2048], [known[n] for n in names], batch, "cuda"
        ):
            typer.echo(
                f"{choice.kernel} p={choice.p} {choice.dtype}: {choice.default:.1f} us, "
                f"best {choice.best:.1f} us with {tuple(choice.config)}",
                err=as_json,
            )
            chosen.append(choice)
        results = tuning.results(chosen, device)
        typer.echo(f"wrote {tuned.store(results)}", err=True)
        if as_json:
            typer.echo(json.dumps(results, indent=2))

    return app


def _remark(line: str) -> None:
    print(f"... {line}", file=sys.stderr)


if __name__ == "__main__":
    main()
