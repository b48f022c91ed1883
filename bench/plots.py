"""Pictures for docs/performance.md from what the bench commands print.

    isobit bench kernels --json > kernels.json
    isobit bench collectives -tp 2 --json > collectives.json
    python -m bench.plots --kernels kernels.json --collectives collectives.json docs/measurements

Needs matplotlib (`pip install -e ".[plots]"`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

COLOURS = ["#2a6f97", "#e07a5f", "#81b29a", "#f2cc8f", "#6d597a", "#3d405b"]
OURS = "isobit"
RIVALS = ("torch int4", "torch bf16 linear")


def style(dark: bool = False) -> None:
    """The look of every picture; a dark one is meant for a dark page."""
    plt.style.use("dark_background" if dark else "default")
    plt.rcParams.update(
        {
            "svg.hashsalt": "isobit",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.axisbelow": True,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "#0d1117" if dark else "white",
            "axes.facecolor": "#0d1117" if dark else "white",
            "savefig.facecolor": "auto",
        }
    )


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(path)


def one_row(rows: list[dict[str, Any]], path: Path) -> None:
    """How much of the memory's bandwidth a product of one row reaches."""
    found = [row for row in rows if row["rows"] == 1 and " x " in row["shape"]]
    found = [row for row in found if "heads" not in row["shape"] and "/" not in row["shape"]]
    kinds = list(dict.fromkeys(row["op"] for row in found))
    shapes = list(dict.fromkeys(row["shape"] for row in found))
    figure, axes = plt.subplots(figsize=(8, 3.6))
    width = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        shares = {row["shape"]: row["bandwidth_share"] for row in found if row["op"] == kind}
        at = [index + (place - (len(kinds) - 1) / 2) * width for index in range(len(shapes))]
        heights = [shares[shape] for shape in shapes]
        axes.bar(at, heights, width * 0.92, label=kind, color=COLOURS[place])
    axes.axhline(1, color="#444", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(shapes)), [f"N x K\n{shape}" for shape in shapes])
    axes.set_ylabel("bytes of weight per second,\nover what memory gives")
    axes.set_title("Products of one row", loc="left")
    axes.legend(ncols=len(kinds), fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    save(figure, path)


def many_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """int4 products against torch, by rows."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows if row["op"] == "int4"))
    figure, all_axes = plt.subplots(1, len(shapes), figsize=(3.2 * len(shapes), 3.2), sharey=True)
    for axes, shape in zip(all_axes, shapes, strict=True):
        found = [row for row in rows if row["op"] == "int4" and row["shape"] == shape]
        counts = [row["rows"] for row in found]
        axes.plot(counts, [r["gflop_s"] for r in found], "o-", label=OURS, color=COLOURS[0])
        for colour, rival in zip(COLOURS[1:], RIVALS, strict=False):
            speeds = [row["gflop_s"] / row["times_faster"][rival] for row in found]
            axes.plot(counts, speeds, "o-", label=rival, color=colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_title(f"int4, N x K = {shape}", fontsize=9, loc="left")
        axes.set_xlabel("rows")
    all_axes[0].set_ylabel("GFLOP/s")
    all_axes[0].legend(fontsize=8)
    save(figure, path)


def collectives(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of a sum over ranks by message size."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for colour, mode in zip(COLOURS, dict.fromkeys(row["mode"] for row in rows), strict=False):
        found = [row for row in rows if row["mode"] == mode]
        sizes, times = [r["bytes"] for r in found], [r["p50_us"] for r in found]
        axes.plot(sizes, times, "o-", markersize=4, label=mode, color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [2**power for power in range(6, 26, 3)]
    axes.set_xticks(ticks, [_size(size) for size in ticks])
    axes.set_xlabel("bytes of float32 from each rank")
    axes.set_ylabel("median time, microseconds")
    axes.set_title("Sum over ranks of one machine", loc="left")
    axes.legend()
    save(figure, path)


def _size(count: int) -> str:
    for unit, name in ((1 << 20, "MB"), (1 << 10, "KB")):
        if count >= unit:
            return f"{count // unit} {name}"
    return f"{count} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernels", type=Path, help="what isobit bench kernels --json printed")
    parser.add_argument("--collectives", type=Path, help="isobit bench collectives --json")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    style()
    if arguments.kernels:
        rows = json.loads(arguments.kernels.read_text())["rows"]
        one_row(rows, arguments.folder / "kernels-one-row.svg")
        many_rows(rows, arguments.folder / "kernels-many-rows.svg")
    if arguments.collectives:
        rows = json.loads(arguments.collectives.read_text())["rows"]
        collectives(rows, arguments.folder / "collectives.svg")


if __name__ == "__main__":
    main()
