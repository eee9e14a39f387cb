"""What all benchmarks share: the timer, the machine in the report, the bars at the end."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys

import pytest
import report

from pairformer import _core


@pytest.fixture
def timed(benchmark):
    """Time ``run`` and quote what it gets done in the median round."""

    def timed(run, count: int, unit: str, rounds: int = 20, warmup_rounds: int = 2):
        """Time ``run``, which does ``count`` units of work, after ``warmup_rounds`` calls; what its last call gave."""
        found = benchmark.pedantic(run, rounds=rounds, warmup_rounds=warmup_rounds)
        if benchmark.stats:
            seconds = benchmark.stats.stats.median
            benchmark.extra_info[f"{unit}s_per_s"] = float(f"{count / seconds:.4g}")
            benchmark.extra_info[f"us_per_{unit}"] = float(f"{seconds / count * 1e6:.4g}")
        return found

    return timed


@pytest.fixture
def torch_threads():
    """Sets the threads of PyTorch, for one benchmark."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine_info["load_average"] = round(os.getloadavg()[0], 2)
    machine_info["variants"] = _core.variants()
    machine_info["versions"] = {"python": sys.version.split()[0]} | {
        name: importlib.metadata.version(name)
        for name in ("pairformer", "numpy", "torch", "biopython")
        if importlib.util.find_spec({"biopython": "Bio"}.get(name, name))
    }


def pytest_terminal_summary(terminalreporter, config):
    """The bars, of those whose benchmarks ran."""
    benchmarks = [{"name": b.name, "extra_info": b.extra_info} for b in config._benchmarksession.benchmarks]
    lines = list(report.bars(benchmarks))
    if lines:
        terminalreporter.section("bars")
        for line in lines:
            terminalreporter.write_line(line)
