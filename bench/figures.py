"""The paper's Fig. 3 and 4 on this machine: python bench/figures.py > table; plots in docs/cost.svg, docs/stages.svg.

64 pairs of 1,329 candidates on average, from strings to logits, the weights of ``model="paper"``, two threads. Every
pipeline and budget has a process of its own; its peak memory is what the calls add to what was there before (VmHWM -
VmRSS). After one call at least five, for five seconds; plotted are the fastest, since other guests of the machine slow
some of the rest.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BUDGETS, THREADS, ROUNDS, SECONDS, N_PAIRS = (8, 16, 32, 64, 128, 256, 512), 2, 5, 5, 64
PIPELINES = ("PAIR-Former, native", "PAIR-Former, PyTorch", "naive", "TargetNet-like")
DOCS = Path(__file__).parent.parent / "docs"


def worker(pipeline: str, k_max: int) -> dict:
    """Milliseconds of each call and of its stages, peak MiB, logits."""
    from pairformer import scan, testing  # before torch, whose threads it keeps from spinning

    import torch  # isort: skip

    from pairformer.engines import NativeEngine
    from pairformer.models import PairFormer
    from pairformer.selector import STSelector

    torch.set_num_threads(THREADS)
    model = PairFormer.load("paper")
    native, pairs = NativeEngine.of(model).model, testing.heavy_tailed_pairs(random.Random(0), N_PAIRS, mean=1900)
    stages: dict[str, list[float]] = {}
    clock = [0.0]

    def done(stage: str) -> None:
        now = time.perf_counter()
        stages.setdefault(stage, []).append(1e3 * (now - clock[0]))
        clock[0] = now

    @torch.no_grad()
    def call() -> np.ndarray:
        candidates = scan(*pairs, threads=THREADS)
        done("scan and align")
        if pipeline == PIPELINES[0]:
            cheap_logit, keys = native.cheap_scan(candidates, threads=THREADS)
            done("cheap encoder on all")
            chosen = model.select(candidates, cheap_logit, keys, k_max, THREADS)
            done("select")
            logit = native.aggregate(candidates, chosen.rows, chosen.offsets, threads=THREADS)[1]
            done("expensive encoder on K, aggregate")
            return logit
        if pipeline == PIPELINES[1]:
            chosen = model.select(candidates, *model.cheap_scan(candidates), k_max, THREADS)
            done("cheap encoder on all, select")
            encoded = model.encode_selected(candidates, chosen.rows)
        else:
            every = np.arange(len(candidates.start))
            if pipeline == PIPELINES[3]:  # needs no embedding
                parts = [model.encode_selected(candidates, rows)[1] for rows in np.array_split(every, N_PAIRS)]
                done("expensive encoder on all")
                return np.maximum.reduceat(torch.cat(parts).numpy(), candidates.offsets[:-1])
            embedding, logit = model.encode_selected(candidates, every)
            done("expensive encoder on all")
            selector = STSelector(k_max, variant="S0")
            chosen = selector.select(logit.numpy(), None, candidates.position, candidates.offsets, THREADS)
            done("select")
            encoded = embedding[chosen.rows], logit[chosen.rows]
        tokens = model.tokenize(candidates, chosen.rows, chosen.offsets, *encoded)
        done("expensive encoder on K, tokens" if pipeline == PIPELINES[1] else "tokens")
        logit = model.aggregate(tokens).logit.numpy()
        done("aggregate")
        return logit

    total, logit = [], np.zeros(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    before = mebibytes("VmRSS")
    while len(total) <= ROUNDS or sum(total[1:]) < 1e3 * SECONDS:
        begin = clock[0] = time.perf_counter()
        logit = call()
        total.append(1e3 * (time.perf_counter() - begin))
    peak = mebibytes("VmHWM") - before
    least = {name: min(part[1:]) for name, part in stages.items()}
    return {"total": total[1:], "stages": least, "peak": peak, "logit": [float(x) for x in logit]}


def mebibytes(field: str) -> float:
    """Of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(pipeline: str, k_max: int) -> dict:
    command = [sys.executable, __file__, pipeline, str(k_max)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def draw(found: dict[tuple[str, int], dict]) -> None:
    from pairformer.evaluation.report import svg_figure

    with svg_figure(DOCS / "cost.svg", 10, 3.2) as figure:
        panels = figure.subplots(1, 3)
        for pipeline in PIPELINES:
            rows = [found[pipeline, k] for k in BUDGETS]
            time_ms = np.array([min(row["total"]) for row in rows])
            peaks = [row["peak"] for row in rows]
            line = "--" if pipeline == PIPELINES[3] else "o-"
            for panel, values in zip(panels, (time_ms, 1e3 * N_PAIRS / time_ms, peaks), strict=True):
                panel.plot(BUDGETS, values, line, label=pipeline, markersize=4)
        for panel, title in zip(panels, ("ms for 64 pairs", "pairs per second", "peak memory, MiB"), strict=True):
            panel.set(xscale="log", yscale="log", xlabel="budget K", title=title)
            panel.set_xticks(BUDGETS, map(str, BUDGETS), minor=False)
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].legend(fontsize=7)
    with svg_figure(DOCS / "stages.svg", 8, 3.6) as figure:
        axes = figure.subplots()
        bars = [(f"{p}: {name}", ms, n) for n, p in enumerate(PIPELINES) for name, ms in found[p, 64]["stages"].items()]
        axes.barh([b[0] for b in bars][::-1], [b[1] for b in bars][::-1], color=[f"C{b[2]}" for b in bars][::-1])
        axes.set(xscale="log", xlabel=f"ms for 64 pairs at K = 64, {THREADS} threads")
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    found: dict[tuple[str, int], dict] = {}
    print(
        "| pipeline | K | fastest, ms for 64 pairs | median | calls | pairs/s | peak memory, MiB |\n" + "|---" * 7 + "|"
    )
    for pipeline in PIPELINES:
        for k in BUDGETS if pipeline != PIPELINES[3] else (BUDGETS[0],):
            row = found[pipeline, k] = measure(pipeline, k)
            calls, fastest = len(row["total"]), min(row["total"])
            figures = f"{fastest:.1f} | {np.median(row['total']):.1f} | {calls} | {1e3 * N_PAIRS / fastest:.0f}"
            what = k if pipeline != PIPELINES[3] else "all"
            print(f"| {pipeline} | {what} | {figures} | {row['peak']:.0f} |", flush=True)
    for k in BUDGETS:
        found[PIPELINES[3], k] = found[PIPELINES[3], BUDGETS[0]]
    print("\n| pipeline | stage | ms at K = 64 |\n" + "|---" * 3 + "|")
    for pipeline in PIPELINES:
        for name, ms in found[pipeline, 64]["stages"].items():
            print(f"| {pipeline} | {name} | {ms:.2f} |")
    draw(found)
    for k in BUDGETS:
        np.testing.assert_allclose(*(found[pipeline, k]["logit"] for pipeline in PIPELINES[:2]), rtol=0, atol=1e-4)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(worker(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
