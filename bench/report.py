"""Writes results.md from pytest-benchmark's JSON.

Command: python bench/report.py bench.json > bench/results.md; --picture FILE draws pairs per second.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path

import numpy as np

HEAD = """# Benchmark results

Run `make bench`; for this page `pytest bench --benchmark-only --benchmark-json bench.json`, then
`python bench/report.py bench.json > bench/results.md`. Times are of the call that the name says, after its answer was
checked and the warm-up calls were made; rates and bars are of the median round, the spread is the interquartile range.
On a GPU nothing has been measured yet: [`gpu.md`](gpu.md).
"""
# What, the benchmark (after bench_; the fastest whose name begins so), the one it is divided by, the rate, its bar.
BARS = (
    ("scan, scores, 10 Mb, one thread", "scores[10Mb", None, "windows_per_s", 5e8),
    ("scan, scores, 1,000 pairs, one thread", "scores[heavy", None, "windows_per_s", 5e8),
    ("scan, alignments, 10 Mb, one thread", "alignments[10Mb", None, "candidates_per_s", 8e6),
    ("scan, alignments, 1,000 pairs, one thread", "alignments[heavy", None, "candidates_per_s", 8e6),
    ("scan, scores, 10 Mb, two threads / one", "threads[10Mb-10-2", "threads[10Mb-10-1", "windows_per_s", 1.8),
    ("scan, alignments, 10 Mb, two threads / one", "threads[10Mb-6-2", "threads[10Mb-6-1", "candidates_per_s", 1.8),
    ("one-hot candidates / Biopython's", "one_hot[pair", "one_hot[bio", "windows_per_s", 500),
    ("select S2 from keys", "select[spread0.5-S2-keys", None, "bags_per_s", 1e6 / 40),
    ("select S2 from embeddings", "select[spread0.5-S2-emb", None, "bags_per_s", 1e6 / 70),
    ("select S2 from keys / S0", "select[spread0.5-S2-keys", "select[spread0.5-S0", "bags_per_s", 1 / 6),
    ("whole path, default model, two threads", "end_to_end[default-2-native", None, "pairs_per_s", 280),
    ("the same / torch engine", "end_to_end[default-2-native", "end_to_end[default-2-torch", "pairs_per_s", 3),
    ("the same / one thread", "end_to_end[default-2-native", "end_to_end[default-1-native", "pairs_per_s", 1.8),
    ("whole path, paper's size, two threads", "end_to_end[paper size-2-native", None, "pairs_per_s", 150),
    ("cheap encoder, one thread", "native_stage[scan_or_cheap_forward-default-1", None, "candidates_per_s", 1.5e6),
    ("two processes of two threads / one", "shared_cores[2", "shared_cores[1", "pairs_per_s", 0.9),
    ("process start to first prediction", "first_prediction[first", None, "starts_per_s", 2),
)
COLUMNS = ("benchmark", "min ms", "median ms", "spread ms", "rounds", "")


def bars(benchmarks: list[dict]):
    """Yield a line for each bar whose benchmarks ran."""

    def best(name: str, rate: str) -> float:
        return max(
            (b["extra_info"].get(rate, 0) for b in benchmarks if b["name"].startswith(f"bench_{name}")), default=0
        )

    for what, name, base, rate, bar in BARS:
        value, unit = best(name, rate), best(base, rate) if base else 1
        if value and unit:
            word = "ratio" if base else rate.replace("_per_", "/")
            state = "reached" if value / unit >= bar else "missed"
            yield f"{what}: {value / unit:.3g} {word}, bar {bar:.3g}, {state}"
    growth = [b["extra_info"] for b in benchmarks if b["name"].startswith("bench_growth")]
    if growth and all("us_per_pair" in info for info in growth):
        off = largest_deviation([info["n"] for info in growth], [info["us_per_pair"] for info in growth])
        state = "reached" if off <= 0.1 else "missed"
        yield f"cost of a pair against n, 64 to 30,000: off a straight line by {off:.2g} at most, bar 0.1, {state}"


def largest_deviation(n: list[float], cost: list[float]) -> float:
    """Of cost from the line that fits best relative to it."""
    design = np.stack([np.ones(len(n)), n], 1) / np.array(cost)[:, None]
    fit = np.linalg.lstsq(design, np.ones(len(n)), rcond=None)[0]
    return float(np.abs(design @ fit - 1).max())


def page(run: dict, note: str):
    """Yield the lines of results.md."""
    machine, commit = run["machine_info"], run["commit_info"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield HEAD
    yield f"- Date {run['datetime'][:10]}, commit {commit['id'][:12]}{' with local changes' if commit['dirty'] else ''}"
    yield f"- Machine: {machine_of(run)}, load average {machine['load_average']} at the end"
    yield f"- Variants {', '.join(machine['variants'])}; {versions}"
    yield from [f"- {note}"] if note else []
    yield from ["", "## Bars", "", *(f"- {line}" for line in bars(run["benchmarks"]))]
    for group, rows in groupby(sorted(run["benchmarks"], key=lambda b: b["group"]), key=lambda b: b["group"]):
        yield from ["", f"## {group}", ""]
        yield from (f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS)))
        for row in rows:
            stats = row["stats"]
            times = " | ".join(f"{1e3 * stats[key]:.4g}" for key in ("min", "median", "iqr"))
            quoted = ", ".join(f"{name} {value:.4g}" for name, value in row["extra_info"].items() if value is not None)
            yield f"| {row['name'].removeprefix('bench_')} | {times} | {stats['rounds']} | {quoted} |"


# What is drawn: label, benchmark, colour of what it is.
OURS, PEERS = "#1b6ca8", "#9aa5b1"
DRAWN = (
    ("native, default model, no sites, 2 threads", "pairs_alone[2", OURS),
    ("native, default model, 2 threads", "end_to_end[default-2-native", OURS),
    ("native, paper's size, 2 threads", "end_to_end[paper size-2-native", OURS),
    ("native, default model, 1 thread", "end_to_end[default-1-native", OURS),
    ("torch engine, default model, 2 threads", "end_to_end[default-2-torch", PEERS),
    ("expensive encoder on all, PyTorch, 2 threads", "other_pipeline[naive-2", PEERS),
    ("Biopython + PyTorch, one 2,000-nt pair", "targetnet_python", PEERS),
)
PAPER = ("paper's code on an RTX 4090, alignment not counted", 280)


def draw(run: dict, path: Path) -> None:
    """Bars of pairs per second on a logarithmic axis, as SVG."""
    from pairformer.evaluation.report import svg_figure

    found = {b["name"].removeprefix("bench_"): b["extra_info"].get("pairs_per_s") for b in run["benchmarks"]}
    rows = [(label, next(v for k, v in found.items() if k.startswith(name)), colour) for label, name, colour in DRAWN]
    rows = sorted([*rows, (*PAPER, PEERS)], key=lambda row: row[1])
    with svg_figure(path, 8, 2.9) as figure:
        axes = figure.subplots()
        axes.barh([row[0] for row in rows], [row[1] for row in rows], color=[row[2] for row in rows], height=0.7)
        for i, (_, rate, _) in enumerate(rows):
            axes.text(rate * 1.06, i, f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}", va="center", fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(3, 60_000)
        axes.set_xlabel("pairs per second, strings to probability, K = 64")
        axes.set_title(f"{machine_of(run)}; 64 pairs, 1,330 candidates each on average", fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)


def machine_of(run: dict) -> str:
    machine = run["machine_info"]
    return f"{machine['cores']} cores of {machine['cpu']['brand_raw']}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--note", default="", help="what else a reader must know, such as other load")
    parser.add_argument("--picture", type=Path, help="SVG to write")
    options = parser.parse_args()
    measured = json.loads(options.json.read_text())
    print("\n".join(page(measured, options.note)))
    if options.picture:
        draw(measured, options.picture)
