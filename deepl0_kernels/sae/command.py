"""The commands ``deepl0 sae``: inspect, convert, eval, train, activations."""

# Annotations are evaluated here: typer reads them.
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Sparse autoencoders: inspect, convert, train.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def examples(*lines: str) -> str:
    """What ends the help of a command."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


Where = Annotated[Path, typer.Argument(metavar="PATH", help="File or folder of the autoencoder.")]
Format = Annotated[
    str | None,
    typer.Option("--from", metavar="FORMAT", help="Format of PATH, where its names do not say it."),
]
_FILE = "X.npy, or X.npz; X.npz:NAME where it has several arrays."
Vectors = Annotated[str, typer.Option(metavar="FILE", help=f"Vectors: {_FILE}")]
MaybeVectors = Annotated[str | None, typer.Option(metavar="FILE", help=f"Vectors: {_FILE}")]
HeldOut = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Vectors to evaluate on, not trained on; as --activations."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of text.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


@contextmanager
def _reporting(command: str, resumes: str = "") -> Iterator[None]:
    """What is wrong with the input, in a line, and exit code 2."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"deepl0 sae {command}: interrupted{resumes}", err=True)
        raise typer.Exit(130) from None
    except (
        ImportError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        typer.echo(f"deepl0 sae {command}: {error or type(error).__name__}", err=True)
        raise typer.Exit(2) from None


@app.command(
    epilog=examples(
        "deepl0 sae inspect folder", "deepl0 sae inspect sae.safetensors --activations X.npy --json"
    )
)
def inspect(
    path: Where,
    activations: MaybeVectors = None,
    format: Format = None,
    as_json: Json = False,
    progress: Progress = True,
) -> None:
    """Say what a file holds.

    Format, shapes, selection, norms; with activations also its dead units.
    """
    with _reporting("inspect"):
        model = _load(path, format)
        found = _description(model)
        if activations is not None:
            found["activations"] = _evaluated(model, path, activations, 1024, progress)
    _print(found, as_json)


@app.command(epilog=examples("deepl0 sae convert ae.pt folder --to saelens"))
def convert(
    path: Where,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder, or file of the format deepl0.")
    ],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="saelens, sparsify or deepl0.")],
    format: Format = None,
) -> None:
    """Write an autoencoder in another format.

    What the format has no place for is refused.
    """
    with _reporting("convert"):
        from . import save

        model = _load(path, format)
        save(model, out, to)
    typer.echo(f"wrote {out} as {to}, from {model.source}")


@app.command("eval", epilog=examples("deepl0 sae eval folder --activations X.npz:layer3 --json"))
def evaluate_command(
    path: Where,
    activations: Vectors,
    batch: Annotated[int, typer.Option(metavar="N", help="Vectors at a time.")] = 1024,
    format: Format = None,
    as_json: Json = False,
    progress: Progress = True,
) -> None:
    """Reconstruct activations: FVU, L0, dead units.

    FVU is the fraction of variance unexplained, 0 at best; L0 the nonzeros of a code.
    """
    with _reporting("eval"):
        found = _evaluated(_load(path, format), path, activations, batch, progress)
    _print(found, as_json)


@app.command(
    epilog=examples(
        "deepl0 sae train --activations X.npy --out run --p 8192 --m 32",
        "deepl0 sae train --activations X.npy --out run --p 8192 --m 32 --stages 1 2 3 --epochs 2",
        "deepl0 sae train --activations X.npy --out deeper --start folder --stages 1 2",
    )
)
def train(
    activations: Vectors,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of the run; gone on with if it exists.")
    ],
    start: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Start from this one, of one stage, in place of a first training."
        ),
    ] = None,
    p: Annotated[int | None, typer.Option(metavar="N", help="Units; by default 4096.")] = None,
    m: Annotated[
        int | None, typer.Option(metavar="N", help="Entries of a code (L0); by default 32.")
    ] = None,
    signed: Annotated[
        bool | None,
        typer.Option(
            "--signed/--positive", help="AbsTopK, or TopK of positive entries (by default)."
        ),
    ] = None,
    stages: Annotated[
        str,
        typer.Option(
            metavar="K...", help="1, or several, as in --stages 1 2 3: the first one, deepened."
        ),
    ] = "1",
    more_stages: Annotated[list[str] | None, typer.Argument(metavar="K", hidden=True)] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Batches; by default 2000.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(metavar="X", help="Passes, in place of --steps.")
    ] = None,
    tuning_steps: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Batches for each of several stages; by default as --steps."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Vectors in a batch.")] = 1024,
    lr: Annotated[float, typer.Option(metavar="X", help="Learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights and shuffles.")] = 0,
    aux: Annotated[float, typer.Option(metavar="X", help="Weight of the loss of dead units.")] = 1
    / 32,
    dead_after: Annotated[
        int | None,
        typer.Option(metavar="N", help="Vectors after which a unit is dead; by default one pass."),
    ] = None,
    held_out: HeldOut = None,
    pursuits: Annotated[
        bool, typer.Option(help="Compare matching pursuit, NIHT and OMP over the same atoms.")
    ] = False,
    every: Annotated[int, typer.Option(metavar="N", help="Batches between checkpoints.")] = 500,
    units: Annotated[
        int,
        typer.Option(
            metavar="N", help="Processes that share a dictionary; the others share a batch."
        ),
    ] = 1,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Seconds that a process waits for another one.")
    ] = 1800.0,
    as_json: Json = False,
    progress: Progress = True,
) -> None:
    """Train an autoencoder and deeper copies of it.

    The folder gets the autoencoders, tables and a page of figures.

    Interrupted, the same command goes on to the same bits. Without --held-out the last tenth of the
    vectors, at most 16,384, is not trained on. Under torchrun its processes train together:
    torchrun --nproc-per-node 4 -m deepl0_kernels.cli sae train ...
    """
    with _reporting("train", f"; the same command goes on from what {out} holds"):
        from ..distributed import launched
        from . import study
        from .activations import Activations

        if steps is not None and epochs is not None:
            raise ValueError(f"give steps or epochs, got steps = {steps} and epochs = {epochs}")
        vectors = Activations.open(activations)
        others = None if held_out is None else Activations.open(held_out)
        if epochs is not None:
            steps = study.steps_of(epochs, vectors, others, batch)
        first = None if start is None else _load(start, None)
        if first is not None:  # what is said must be true of it, what is not said is taken from it
            p = first.code_size if p is None else p
            m = first.m[0] if m is None and first.m else m
            signed = not first.positive if signed is None else signed
        settings = study.Settings(
            p=4096 if p is None else p,
            m=32 if m is None else m,
            positive=not signed,
            stages=_numbers("stages", [stages, *(more_stages or [])]),
            steps=2000 if steps is None else steps,
            tuning_steps=tuning_steps,
            batch=batch,
            lr=lr,
            seed=seed,
            aux_coefficient=aux,
            dead_after=dead_after,
            pursuits=pursuits,
        )
        with launched(units, timeout) as ranks:
            results = study.train(
                vectors,
                settings,
                out,
                held_out=others,
                start=first,
                every=every,
                ranks=ranks,
                progress=_shown(progress),
            )
    if not ranks.first:
        return
    typer.echo(f"wrote autoencoders, results.json, results.csv and report.html to {out}", err=True)
    if as_json:
        typer.echo(json.dumps(results["evaluations"], indent=2))
        return
    for row in results["evaluations"]:
        if row["trained_m"]:
            typer.echo(
                f"{row['method']:<24} FVU {row['fvu']:.4f}  L0 {row['l0']:.2f}  "
                f"dead {row['dead']} of {row['units']}"
            )


@app.command(
    "activations", epilog=examples("deepl0 sae activations --text book.txt --layer 3 --out X.npy")
)
def activations_command(
    text: Annotated[list[Path], typer.Option(metavar="FILE", help="A text in UTF-8; repeatable.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .npy to write.")],
    layer: Annotated[int, typer.Option(metavar="N", help="0 to 6: after how many layers.")] = 3,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="float16 or float32.")] = "float16",
    batch: Annotated[int, typer.Option(metavar="N", help="Windows at a time.")] = 32,
    progress: Progress = True,
) -> None:
    """Write a language model's vectors of a text.

    Of the residual stream of all-MiniLM-L6-v2, a token each. Needs no network.
    """
    with _reporting("activations"):
        from .text import write_activations

        shape = write_activations(
            text, out, layer, dtype=dtype, batch=batch, progress=_shown(progress)
        )
    typer.echo(f"wrote {shape[0]} vectors of {shape[1]} to {out}")


def _shown(progress: bool) -> bool:
    return progress and sys.stderr.isatty()


def _numbers(name: str, words: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in " ".join(words).replace(",", " ").split())
    except ValueError:
        raise ValueError(f"{name} must be integers, got {' '.join(words)!r}") from None


def _load(path: Path, format: str | None) -> Any:
    from . import load

    return load(path, format)


def _evaluated(model: Any, path: Path, activations: str, batch: int, progress: bool) -> dict:
    from .activations import Activations
    from .evaluation import evaluate

    vectors = Activations.open(activations)
    vectors.fits(model.in_features, str(path))
    vectors.check(_shown(progress))
    found = evaluate(model, vectors, batch=batch, progress=_shown(progress))
    return {"activations": vectors.name, **found.summary()}


def _description(model: Any) -> dict[str, Any]:
    norms = model.D.detach().double().norm(dim=0)
    theta = {} if model.theta is None else {"theta": _range(model.theta)}
    return {
        "source": model.source,
        "n": model.in_features,
        "p": model.code_size,
        "dtype": str(model.W.dtype).removeprefix("torch."),
        **model.options(),
        "atom_norms": _range(norms),
        "bias": _range(model.bias),
        **theta,
        "metadata": model.metadata,
    }


def _range(values: Any) -> dict[str, float]:
    values = values.detach().double()
    return {
        "min": values.min().item(),
        "mean": values.mean().item(),
        "max": values.max().item(),
    }


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in found.items():
        if key == "firing":
            yield f"{indent}firing        units by the share of vectors that they fire on"
            yield from _histogram(value, indent + "  ")
        elif isinstance(value, dict) and set(value) == {"min", "mean", "max"}:
            yield f"{indent}{key:<13} " + ", ".join(f"{k} {v:.6g}" for k, v in value.items())
        elif isinstance(value, dict):
            yield f"{indent}{key}" + ("" if value else "      none")
            yield from _lines(value, indent + "  ")
        else:
            shown = f"{value:.6g}" if isinstance(value, float) else value
            yield f"{indent}{key:<13} {shown}"


def _histogram(counts: dict[str, int], indent: str) -> Iterator[str]:
    most = max(max(counts.values()), 1)
    for name, count in counts.items():
        what = name if name == "never" else f">= {name}"
        yield f"{indent}{what:<8} {count:>8} " + "#" * round(40 * count / most)
