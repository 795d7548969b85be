"""Tables and a figure from the committed record; nothing here is measured."""

from __future__ import annotations

from pathlib import Path

from deepl0_kernels._files import fill, write_atomically

from . import records
from .conftest import EAGER, FLOOR, OURS, PREPARED

ROOT = Path(__file__).parents[1]
DOCS, README = ROOT / "docs", ROOT / "README.md"

# What the README shows of the record: operator, shape, and ours and whose if not as recorded.
SHOWN = (
    ("keep_top_m", "B=4096 p=512 m=32"),
    ("top_m", "B=4096 p=512 m=32"),
    ("encode_top_m", "B=4096 p=128 m=32 K=2"),
    ("encode_top_m", "B=4096 p=512 m=32 K=2"),
    ("encode_top_m", "B=4096 p=2048 m=32 K=2"),
    ("encode_top_m", "B=4096 p=512 m=32 K=10"),
    ("encode_top_m", "B=4096 p=16384 m=32 K=1"),
    ("encode_top_m", "B=1 p=512 m=32 K=2"),
    ("encode_top_m", "B=1 p=512 m=32 K=2", "deepl0, S by columns"),
    ("encode_top_m", "B=1 p=2048 m=32 K=2", "deepl0, S by columns"),
    ("encode_top_m forward + backward", "B=4096 p=512 m=32 K=2"),
    ("encode_top_m forward + backward", "B=4096 p=2048 m=32 K=2"),
    ("encode_l0", "B=4096 p=512 active=0.05 K=2"),
    ("iht_m 10 iterations", "B=4096 p=512 m=32"),
    ("iht_m 10 iterations", "B=4096 p=512 m=32", OURS, "SPAMS omp"),
    ("iht_m 10 iterations", "B=4096 p=512 m=32", OURS, "scikit-learn omp"),
    ("iht_m 10 iterations", "B=4096 p=2048 m=32"),
    ("omp", "B=4096 p=512 m=32"),
    ("fista", "B=4096 p=512 lam=0.2"),
    ("fista", "B=4096 p=512 lam=0.2", OURS, "scikit-learn lasso_cd"),
)

INTRODUCTION = """# Benchmarks

Drawn from the records `bench/records/cpu*.csv`, one a machine; every row was measured there, none
is left out. `make bench` writes cpu.csv, the whole suite on one machine.
Times are medians in microseconds per call, the providers interleaved round by round in one process.
`x` is the median of the provider compared against (torch eager; for omp and fista SPAMS) over ours;
below 1 we lose. `floor` is the time of the product W x alone over ours: 100 % would mean that
everything but that product is free. scikit-learn was given 16 signals and its time scaled to the
batch. Before every call that is raced against SPAMS and scikit-learn all threads rest, since those
of one library's pool go on spinning after its call; calls shorter than the rest are then made once
unmeasured, so their caches are warm.
"""


# Of the GPU's record.
SHOWN_ON_GPU = (
    ("keep_top_m", "B=65536 p=512 m=32 float32"),
    ("top_m", "B=4096 p=512 m=32 float32"),
    ("top_m", "B=64 p=131072 m=64 float32"),
    ("encode_top_m", "B=4096 p=128 m=32 K=2 float32"),
    ("encode_top_m", "B=4096 p=512 m=32 K=2 float32"),
    ("encode_top_m", "B=4096 p=512 m=32 K=2 bfloat16"),
    ("encode_top_m", "B=65536 p=512 m=32 K=2 float32"),
    ("encode_top_m", "B=4096 p=4096 m=32 K=2 float32"),
    ("encode_top_m forward + backward", "B=4096 p=128 m=32 K=2 float32"),
    ("encode_top_m forward + backward", "B=4096 p=512 m=32 K=2 float32"),
    ("encode_top_m forward + backward", "B=4096 p=4096 m=32 K=2 float32"),
    ("encode_l0", "B=4096 p=512 active=0.05 K=2 float32"),
    ("encode_l0", "B=4096 p=512 active=0.05 K=2 bfloat16"),
    ("helu forward + backward", "B=65536 p=512 float32"),
    ("decode forward + backward", "B=4096 p=16384 float32"),
    ("decode forward + backward", "B=4096 p=512 bfloat16"),
)
COPY, TRITON, COMPILED = "copy of the same bytes", f"{OURS}, triton", "torch.compile"

GPU_INTRODUCTION = """# Benchmarks on a GPU

Drawn from the records `bench/records/gpu-*.csv`, one a card; every shape that was measured
stands here, its rows with a cold L2 and further rivals in the record. Times are medians in
microseconds, the providers interleaved round by round in one
process: *graph*, a call inside a CUDA graph, which no launch overhead hides; *call*, a call as
written, with a warm L2, from Python, most of which is overhead of the host where it is much above
the graph's. `x` is torch eager over deepl0; below 1 we lose. `Triton` are our Triton kernels where
CUDA's serve; in these records those of the encoders had products inside, and are gone. `copy` moves
the bytes that the operator must move. In half types torch eager rounds the code of every stage to
the half type and multiplies it so; so do ours now, but when these records were taken they kept it
in float32, which is more work.
"""


def cpu_tables(record: Path) -> None:
    """Write docs/benchmarks.md, the README's table and its figure."""
    rows = records.read(record)
    write_atomically(DOCS / "benchmarks.md", cpu_page(record).encode())
    fill(README, {"measured": summary(rows), "measured with a plan": prepared(record)})
    fill(DOCS / "sae.md", {"speed": sae_speed(record)})
    shown = {s[:2] for s in SHOWN}
    speedups([r for r in rows if r.threads == 1 and r.provider == OURS
              and (r.operator, r.shape) in shown])  # fmt: skip


def _all_machines(record: Path) -> list[list[records.Row]]:
    """The rows of this record, then of those of other machines beside it."""
    others = sorted({*record.parent.glob("cpu-*.csv")} - {record})
    found = [records.read(path) for path in (record, *others)]
    for path, rows in zip((record, *others), found, strict=True):
        if len(machines := {r.machine for r in rows}) > 1:
            raise ValueError(f"{path} must be of one machine, got {sorted(machines)}")
    return found


def cpu_page(record: Path) -> str:
    """The tables of this record and of those beside it."""
    return "\n".join([INTRODUCTION, *map(table, _all_machines(record))])


def sae_speed(record: Path) -> str:
    """The table of docs/sae.md: a step of training, and what its parts take of it."""
    step = "sae training step"
    parts = {
        "encode": "sae encode",
        "decode": "sae decode forward + backward",
        "Adam": "sae optimiser step",
    }
    lines = []
    for rows in _all_machines(record):
        found = {(r.operator, r.shape, r.threads, r.provider): r for r in rows}
        ours = [r for r in rows if r.operator == step and r.provider == OURS]
        if ours:
            lines += [
                f"{ours[0].machine}, {ours[0].isa}, torch {ours[0].torch}:",
                "",
                f"| | threads | {EAGER} | SAELens | deepl0 | {EAGER} / deepl0 | SAELens / deepl0 |"
                f" vectors a second | {' | '.join(parts)} |",
                "|---" * (8 + len(parts)) + "|",
            ]
        for r in ours:
            raced = [found.get((step, r.shape, r.threads, name)) for name in (EAGER, "SAELens")]
            batch = int(r.shape.rpartition("B=")[2])
            shares = [found[o, r.shape, r.threads, OURS].p50 / r.p50 for o in parts.values()]
            cells = [
                r.shape,
                r.threads,
                *(f"{one.p50 / 1e3:.4g} ms" if one else "" for one in (*raced, r)),
                *(f"**{one.p50 / r.p50:.1f}**" if one else "" for one in raced),
                f"{batch / r.p50 * 1e6:,.0f}",
                *(f"{share:.0%}" for share in shares),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    note = "Shares of the step are those of the parts run alone: encode forward, decode forward and"
    return "\n".join([*lines, "", f"{note} backward, Adam."])


README_CARD = "gpu-h200.csv"  # whose record the README shows


def gpu_tables(folder: Path = records.FOLDER) -> None:
    """Write docs/benchmarks-gpu.md of all cards' records, and the README's table of one."""
    page, shown = gpu_page(folder), gpu_summary(records.read(folder / README_CARD))
    write_atomically(DOCS / "benchmarks-gpu.md", page.encode())
    fill(README, {"measured on a GPU": shown})


def gpu_page(folder: Path) -> str:
    tables = [gpu_table(records.read(path)) for path in sorted(folder.glob("gpu-*.csv"))]
    return "\n".join([GPU_INTRODUCTION, *tables])


def _gpu_machine(r: records.Row) -> str:
    commit = f"commit {r.commit}" if r.commit else "commit not written down"
    return f"{r.machine}, driver {r.driver}, torch {r.torch}, triton {r.triton}; {commit}"


def _by_mode(rows: list[records.Row]) -> dict[str, dict[str, dict[str, dict[str, records.Row]]]]:
    """Operator -> shape -> mode -> provider -> row."""
    found: dict = {}
    for r in rows:
        operator, mode = r.operator.rsplit(", ", 1)
        found.setdefault(operator, {}).setdefault(r.shape, {}).setdefault(mode, {})[r.provider] = r
    return found


def _cell(providers: dict[str, records.Row], name: str) -> str:
    return f"{providers[name].p50:.4g}" if name in providers else ""


def gpu_table(rows: list[records.Row]) -> str:
    """The section of one card."""
    lines = [
        f"## {rows[0].machine.split(',')[0]}",
        "",
        *sorted({f"* {_gpu_machine(r)}; {r.time[:10]}" for r in rows}),
    ]
    for operator, shapes in _by_mode(rows).items():
        lines += [
            "",
            f"### {operator}",
            "",
            "| | graph: deepl0 | torch eager | torch.compile | Triton | copy | x | call: deepl0 |"
            " torch eager | torch.compile | x |",
            "|---" * 11 + "|",
        ]
        for shape, modes in shapes.items():
            cells = [shape]
            for mode, names in (
                ("graph", (OURS, EAGER, COMPILED, TRITON, COPY)),
                ("warm L2", (OURS, EAGER, COMPILED)),
            ):
                found = modes.get(mode, {})  # a provider that cannot be captured has no graph
                cells += [_cell(found, name) for name in names]
                cells.append(f"{found[OURS].speedup:.2f}" if OURS in found else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def gpu_summary(rows: list[records.Row]) -> str:
    found = _by_mode(rows)
    lines = [
        "| | torch eager | torch.compile | deepl0 | eager / deepl0 | as calls from Python |",
        "|---|---|---|---|---|---|",
    ]
    for operator, shape in SHOWN_ON_GPU:
        modes = found.get(operator, {}).get(shape, {})
        if not {"graph", "warm L2"} <= modes.keys():
            continue  # of a record that was cut
        graph, call = modes["graph"], modes["warm L2"]
        eager, compiled, ours = (_cell(graph, name) for name in (EAGER, COMPILED, OURS))
        lines.append(
            f"| {operator}, {shape} | {eager} us | {compiled and f'{compiled} us'} | {ours} us | "
            f"**{graph[OURS].speedup:.1f}** | {call[OURS].speedup:.1f} |"
        )
    losses = "\n".join(f"* {line}" for line in _losses(found))
    machines = "; ".join(sorted({_gpu_machine(r) for r in rows}))
    return f"{machines}:\n\n" + "\n".join(lines) + f"\n\nWhere we lose:\n\n{losses}\n"


def _losses(found: dict) -> list[str]:
    """Of each operator, in how many of its rows a rival is faster, in a graph and as a call."""
    lines = []
    for operator, shapes in found.items():
        parts = []
        for mode, what in (("graph", "in a graph"), ("warm L2", "as calls")):
            found_in = [modes.get(mode, {}) for modes in shapes.values()]
            others = dict.fromkeys(name for row in found_in for name in row)
            for rival in (name for name in others if not name.startswith(OURS) and name != COPY):
                raced = [row for row in found_in if {rival, OURS} <= row.keys()]
                lost = sum(row[rival].p50 < row[OURS].p50 for row in raced)
                if lost:
                    parts.append(f"{what} to {rival} in {lost} of {len(raced)} rows")
        if parts:
            lines.append(f"{operator}: {', '.join(parts)}")
    return lines


def table(rows: list[records.Row]) -> str:
    """One line per operator, shape and number of threads."""
    races: dict[tuple[str, int], dict[str, dict[str, records.Row]]] = {}
    for r in rows:
        races.setdefault((r.operator, r.threads), {}).setdefault(r.shape, {})[r.provider] = r
    runs = sorted({f"{r.isa}; torch {r.torch}; {r.time[:10]}" for r in rows})
    lines = [f"## {rows[0].machine}", "", *(f"* {run}" for run in runs)]
    for (operator, threads), shapes in sorted(races.items()):
        rivals = sorted({p for found in shapes.values() for p in found} - {OURS, FLOOR})
        lines += [
            "",
            f"### {operator}, {threads} thread{'s' if threads > 1 else ''}",
            "",
            f"| | {OURS} | {' | '.join(rivals)} | x | floor |",
            "|---" * (len(rivals) + 4) + "|",
        ]
        for shape, found in shapes.items():
            cells = [f"{found[p].p50:.4g}" if p in found else "" for p in (OURS, *rivals)]
            floor = f"{found[FLOOR].p50 / found[OURS].p50:.0%}" if FLOOR in found else ""
            lines.append(f"| {shape} | {' | '.join(cells)} | {found[OURS].speedup:.2f} | {floor} |")
    return "\n".join(lines) + "\n"


def summary(rows: list[records.Row]) -> str:
    """The README's table: one thread, float32, n = 256."""
    found = {(r.operator, r.shape, r.provider): r for r in rows if r.threads == 1}
    lines = [
        "| | against | it takes | deepl0 takes | times faster | W x alone |",
        "|---|---|---|---|---|---|",
    ]
    for operator, shape, *who in SHOWN:
        provider, against = (*who, "", "")[:2]
        ours = found[operator, shape, provider or OURS]
        rival = found[operator, shape, against or ours.against]
        floor = found.get((operator, shape, FLOOR))
        share = f"{floor.p50 / ours.p50:.0%}" if floor else ""
        what = f"{operator}, {shape}" + (provider or OURS).removeprefix(OURS)
        lines.append(
            f"| {what} | {rival.provider} | {rival.p50 / 1e3:.3g} ms | {ours.p50 / 1e3:.3g} ms"
            f" | **{rival.p50 / ours.p50:.1f}** | {share} |"
        )
    some = found[(*SHOWN[0][:2], OURS)]
    return f"{some.machine}, {some.isa}, torch {some.torch}:\n\n" + "\n".join(lines) + "\n"


def prepared(record: Path) -> str:
    """The README's table of weights kept ready: K = 2, m = 32, one thread; the first machine that
    has such rows."""
    for rows in _all_machines(record):
        found = {(r.operator, r.shape, r.provider): r for r in rows if r.threads == 1}
        shown = [
            (operator, shape)
            for operator, shape, provider in found
            if provider == PREPARED and "m=32 K=2" in shape and "p=128 " not in shape
        ]
        if shown:
            break
    lines = [
        "| | torch eager | deepl0 | prepared | eager / prepared | W x alone |",
        "|---|---|---|---|---|---|",
    ]
    for key in shown:
        eager, ours, ready, floor = (found[(*key, who)] for who in (EAGER, OURS, PREPARED, FLOOR))
        times = " | ".join(f"{r.p50 / 1e3:.3g} ms" for r in (eager, ours, ready))
        ratio, share = eager.p50 / ready.p50, floor.p50 / ready.p50
        lines.append(f"| {', '.join(key)} | {times} | **{ratio:.1f}** | {share:.0%} |")
    return f"{rows[0].machine}, {rows[0].isa}, torch {rows[0].torch}:\n\n" + "\n".join(lines) + "\n"


def speedups(rows: list[records.Row]) -> None:
    """Draw docs/figures/speedup.png: one bar per operator and shape, one thread."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    operators = list(dict.fromkeys(r.operator for r in rows))
    rows = sorted(rows, key=lambda r: operators.index(r.operator))
    palette = plt.get_cmap("tab10").colors
    figure, axes = plt.subplots(figsize=(8, 0.16 * len(rows) + 1.3), layout="constrained")
    positions = range(len(rows))
    axes.barh(
        positions,
        [r.speedup for r in rows],
        color=[palette[operators.index(r.operator) % 10] for r in rows],
    )
    axes.set_yticks(positions, [f"{r.operator}  {r.shape}" for r in rows], fontsize=6)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=0.8)
    for y, row in zip(positions, rows, strict=True):
        axes.text(row.speedup * 1.03, y, f"{row.speedup:.1f}", va="center", fontsize=6)
    axes.set_xlabel(
        "times faster than torch eager (omp, fista: than SPAMS)\none thread, medians, log scale"
    )
    axes.set_title(f"{rows[0].machine}, torch {rows[0].torch}", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    (DOCS / "figures").mkdir(parents=True, exist_ok=True)
    figure.savefig(DOCS / "figures" / "speedup.png", dpi=150, metadata={"Software": None})
    plt.close(figure)
