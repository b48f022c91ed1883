"""Pictures of docs/scale.md, each for a light and a dark page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from ..plots import save, style
from .sweep import GIB, Row

LIGHT = ("#2a6f97", "#d1495b", "#4f9d69", "#8d6a9f", "#c77f1a", "#3d405b")
DARK = ("#6fb7dc", "#ff8b94", "#8fd6a5", "#c9a7dd", "#f2cc8f", "#c4c8dd")
MARKERS = "osD^vP"
PANELS = (
    "Qwen2.5-7B",
    "Qwen2.5-14B",
    "Qwen1.5-32B",
    "Llama-3.1-70B",
    "Qwen1.5-110B",
    "Llama-3.1-405B",
)
PARTS = ("fixed", "launches", "products, attention", "sums and gathers")
PARTED = ("decode 1", "prefill 2048")
MOST_PARTED = 16
"""Cards: with more, one part hides the others."""


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Write all pictures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dark in (False, True):
        style(dark=dark)
        colours, end = (DARK, "-dark.svg") if dark else (LIGHT, ".svg")
        for name, picture in (("speed", speed), ("parts", parts), ("memory", memory)):
            figure = picture(rows, colours)
            paths.append(folder / f"scale-{name}{end}")
            save(figure, paths[-1])
    return paths


def _panels(rows: list[Row]) -> list[str]:
    known = list(dict.fromkeys(row.model for row in rows))
    return [name for name in PANELS if name in known] or known[:6]


def _cards_axis(axes: Any, degrees: list[int]) -> None:
    axes.set_xscale("log", base=2)
    shown = [degree for degree in degrees if degree & (degree - 1) == 0]
    axes.set_xticks(shown, [str(degree) for degree in shown])
    axes.minorticks_off()


def speed(rows: list[Row], colours: tuple[str, ...]) -> Any:
    """Tokens a second at batch 1 by cards: a panel for each model, a line for each cluster."""
    names = _panels(rows)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(9, 0.9 + 2.5 * lines), sharex=True, squeeze=False
    )
    clusters = list(dict.fromkeys(row.cluster for row in rows))
    degrees = sorted({row.degree for row in rows})
    for index, name in enumerate(names):
        axes = grid[index // columns][index % columns]
        for place, cluster in enumerate(clusters):
            mine = [
                row
                for row in rows
                if row.model == name and row.cluster == cluster and row.fits
                if row.workload.name == "decode 1"
            ]
            axes.plot(
                [row.degree for row in mine],
                [row.tokens_per_s for row in mine],
                marker=MARKERS[place % len(MARKERS)],
                markersize=3.5,
                linewidth=1.3,
                color=colours[place % len(colours)],
                label=cluster,
            )
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_ylim(bottom=0)
        _cards_axis(axes, degrees)
    for axes in grid[-1]:
        axes.set_xlabel("cards")
    for line in grid:
        line[0].set_ylabel("tokens/s")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.suptitle("One sequence, int4: calculated, where it fits", fontsize=11, x=0.01, ha="left")
    return figure


def parts(rows: list[Row], colours: tuple[str, ...]) -> Any:
    """Where the time of a 70B goes: a column for each cluster, a line for each workload.

    Every panel has a scale of its own.
    """
    known = _panels(rows)
    model = "Llama-3.1-70B" if "Llama-3.1-70B" in known else known[-1]
    clusters = list(dict.fromkeys(row.cluster for row in rows))
    clusters = [clusters[0], *clusters[-2:]] if len(clusters) > 3 else clusters
    figure, grid = plt.subplots(len(PARTED), len(clusters), figsize=(9, 5.6), squeeze=False)
    for line, workload in zip(grid, PARTED, strict=True):
        for axes, cluster in zip(line, clusters, strict=True):
            mine = [
                row
                for row in rows
                if (row.model, row.cluster, row.workload.name) == (model, cluster, workload)
                and row.fits
                and row.degree <= MOST_PARTED
            ]
            _stack(axes, mine, colours)
            axes.grid(axis="x", visible=False)
    for axes, cluster in zip(grid[0], clusters, strict=True):
        axes.set_title(_two_lines(cluster), fontsize=8.5, loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("cards")
    for line, workload in zip(grid, PARTED, strict=True):
        line[0].set_ylabel(f"{workload}, ms")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(f"Where the time of {model} goes: calculated", fontsize=11, x=0.01, ha="left")
    return figure


def _stack(axes: Any, rows: list[Row], colours: tuple[str, ...]) -> None:
    below = [0.0] * len(rows)
    at = range(len(rows))
    for place, part in enumerate(PARTS):
        heights = [_part(row, part) * 1e3 for row in rows]
        axes.bar(at, heights, 0.75, bottom=below, label=part, color=colours[place])
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_xticks(list(at), [str(row.degree) for row in rows], fontsize=8)


def _part(row: Row, part: str) -> float:
    return {
        "fixed": row.time.fixed,
        "launches": row.time.kernels,
        "products, attention": row.time.busy,
        "sums and gathers": row.time.collectives.chosen,
    }[part]


def _two_lines(cluster: str) -> str:
    words = cluster.split(", ")
    half = -(-len(words) // 2)
    return ", ".join(words[:half]) + "\n" + ", ".join(words[half:])


def memory(rows: list[Row], colours: tuple[str, ...]) -> Any:
    """GiB of the fullest card with one sequence of 2048 tokens."""
    figure, axes = plt.subplots(figsize=(9, 3.4))
    degrees = sorted({row.degree for row in rows})
    for place, name in enumerate(_panels(rows)):
        found = {
            row.degree: row.needed / GIB
            for row in rows
            if row.model == name and row.workload.name == "prefill 2048"
        }
        axes.plot(
            list(found),
            list(found.values()),
            marker=MARKERS[place % len(MARKERS)],
            markersize=3.5,
            linewidth=1.3,
            color=colours[place % len(colours)],
            label=name,
        )
    for gib in (24, 80):
        axes.axhline(0.9 * gib, color="#888888", linewidth=1, linestyle="--")
        axes.text(degrees[-1], 0.93 * gib, f"0.9 of {gib} GiB", ha="right", va="bottom", fontsize=8)
    axes.set_yscale("log", base=2)
    ticks = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    _cards_axis(axes, degrees)
    axes.set_xlabel("cards")
    axes.set_ylabel("GiB of the fullest card")
    axes.set_title(
        "int4 weights, 2048 tokens, workspace: as isobit plan says", loc="left", fontsize=11
    )
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left")
    return figure
