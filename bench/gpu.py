"""GPU benchmarks: python bench/gpu.py OUT [SECONDS] writes OUT/gpu.json and OUT/gpu.md.

Kernels are timed as device time, many calls captured in one CUDA graph, beside the best stock alternative in the same
run and the floor that this device's own copy bandwidth and matrix products give. What kernels give is compared with
PyTorch's first. A row that fails is named in the report and the exit code is 1. Each section has a process of its own,
since a fault of one kernel leaves the device unusable for the rest of its process, after which another goes on with the
next row; and a limit of its own in seconds.

``python bench/gpu.py --compile`` calls everything once, sections side by side, so that what Triton and torch.compile
make is in their caches: kernels are then tuned and timed with nothing else running.
"""

import functools
import gc
import itertools
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pairformer.kernels import reference, use_kernels
from pairformer.kernels.axial_attention import axial_attention
from pairformer.kernels.cheap_scan import CheapScan
from pairformer.kernels.duplex import duplex_energy
from pairformer.kernels.esa_scan import DevicePairs, Rows, esa_scan
from pairformer.kernels.set_attention import ragged_set_attention, set_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

import pairformer
from pairformer import testing
from pairformer.config import AggregatorConfig
from pairformer.engines import TritonEngine, exact_float32
from pairformer.models import PairFormer, SetTransformer
from pairformer.models.rnaformer import sdp_axial_attention
from pairformer.models.set_transformer import sdp_attention
from pairformer.predict import Scorer
from pairformer.saved import whole_file

K_MAX = 64
COMPILING = "--compile" in sys.argv  # once is enough, and times mean nothing
UNUSABLE = 3  # exit code of a process that a row left without a usable device
Section = Iterator[tuple[dict, Callable[[], dict]]]  # what a row is of, and what measures it


def device_ms(call, repeats: int = 20) -> tuple[float, float]:
    """Median device time of one call, and the spread (largest less smallest) over rounds of a captured graph."""
    if COMPILING:
        return wall_ms(call)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    gc.collect()  # nothing may be freed during capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    found = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / repeats)
    return float(np.median(found)), max(found) - min(found)


def wall_ms(call, rounds: int = 7) -> tuple[float, float]:
    """The same by the clock, for what the CPU has part in."""
    call()
    if COMPILING:
        return 0.0, 0.0
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(1e3 * (time.perf_counter() - began))
    return float(np.median(found)), max(found) - min(found)


def timed(clock, call, *settings: int) -> dict:
    """By ``device_ms`` or ``wall_ms``."""
    ms, spread = clock(call, *settings)
    return {"ms": ms, "spread": spread}


def roofline() -> dict:
    """What this device copies and multiplies."""
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    copy, _ = device_ms(lambda: target.copy_(source), 5)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product, _ = device_ms(lambda: a @ b, 3)
    return {"GB/s": 2 * source.nbytes / copy / 1e6, "bf16 TFLOP/s": 2 * 8192**3 / product / 1e9}


MAY_REFUSE = ("SDPA, mask, cuDNN", "varlen_attn (flash)")  # a CUDA graph, after which a process is of no use


def attention(ceiling: dict, refusing: bool = False) -> Section:
    """Forward and backward, ours as SDPA has it; masks leave 9 of 10 keys, bags of the ragged forms are full."""
    shapes = ((1024, 64, 256), (1024, 64, 64), (128, 512, 256), (128, 512, 64))
    for ours, (bags, n, width) in itertools.product((True, False), shapes):  # first what no other form can keep from us
        flops = 3.5 * 4 * bags * n * n * width
        moved = 12 * bags * n * width * 2  # forward reads 3 arrays and writes 1, backward reads 5 and writes 3
        floor = max(flops / ceiling["bf16 TFLOP/s"] / 1e9, moved / ceiling["GB/s"] / 1e6)
        part = torch.empty(bags, width // 32, n, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        mask = torch.ones(bags, 1, 1, n, device="cuda", dtype=torch.bool)
        taken = SDPBackend(torch._fused_sdp_choice(part, part, part, mask)).name
        for name, (call, expected) in attention_forms(bags, n, width // 32).items():
            if name.endswith("set_attention") != ours or (name in MAY_REFUSE) != refusing:
                continue

            def measure(call=call, expected=expected, flops=flops, moved=moved, floor=floor):
                for a, b in zip(call(), expected(), strict=True):
                    assert (off := (a.view_as(b).float() - b).norm() / b.norm()) < 2e-2, f"off by {off:.3g} of the norm"
                row = timed(device_ms, call, 5)
                ms = row["ms"]
                return row | {"TFLOP/s": flops / ms / 1e9, "GB/s": moved / ms / 1e6, "floor, %": 100 * floor / ms}

            yield {"B": bags, "K": n, "d": width, "form": name, "SDPA takes": taken}, measure


def attention_forms(bags: int, n: int, heads: int) -> dict:
    """Calls of a forward and a backward pass, and of what they shall give."""
    torch.manual_seed(0)
    padded = [torch.randn(bags, n, heads, 32, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    flat = [part.detach().flatten(0, 1).requires_grad_() for part in padded]
    slope = torch.randn_like(padded[0])
    mask = torch.rand(bags, n, device="cuda") < 0.9
    mask[:, 0] = True
    ends = torch.arange(0, bags * n + 1, n, device="cuda", dtype=torch.int32)
    compiled = torch.compile(sdp_attention, dynamic=False)

    def by_backend(backend):
        with sdpa_kernel(backend):
            return sdp_attention(*padded, mask)

    forms = {
        "set_attention": (padded, lambda: set_attention(*padded, mask)),
        "SDPA, mask": (padded, lambda: sdp_attention(*padded, mask)),
        "SDPA, mask, memory-efficient": (padded, lambda: by_backend(SDPBackend.EFFICIENT_ATTENTION)),
        "SDPA, mask, torch.compile": (padded, lambda: compiled(*padded, mask)),
        "ragged_set_attention": (flat, lambda: ragged_set_attention(*flat, ends, ends, n, n)),
        "SDPA, mask, cuDNN": (padded, lambda: by_backend(SDPBackend.CUDNN_ATTENTION)),
    }
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        pass
    else:
        forms["varlen_attn (flash)"] = (flat, lambda: varlen_attn(*flat, ends, ends, n, n))

    def both(inputs, call):
        out = call()
        grads = torch.autograd.grad(out, inputs, slope.view_as(out).to(out.dtype))
        return out.detach(), *grads  # a graph that is kept ties its leaves to this stream, which stops every capture

    def plainly(mask):
        wide = [part.detach().float().requires_grad_() for part in padded]
        with sdpa_kernel(SDPBackend.MATH), exact_float32():
            return both(wide, lambda: sdp_attention(*wide, mask))

    masked, full = (functools.cache(functools.partial(plainly, m)) for m in (mask, torch.ones_like(mask)))
    return {
        name: (functools.partial(both, *form), masked if form[0] is padded else full) for name, form in forms.items()
    }


def cheap(ceiling: dict) -> Section:
    """Candidates a second: the kernel, and the same encoder by cuDNN on one-hot windows that are there already."""
    model = PairFormer.load("default").cuda()
    candidates = pairformer.scan(*testing.heavy_tailed_pairs(random.Random(0), 256, mean=1900))
    n = len(candidates.start)
    pairs, rows = DevicePairs.of(candidates.batch, "cuda"), Rows.of(candidates, "cuda")
    scan = CheapScan(model.cheap, model.config.selector.rng_seed, "cuda")
    windows = torch.from_numpy(candidates.encode()).cuda().float()
    arguments = (windows, rows.esa_score, rows.position)
    with torch.no_grad(), exact_float32():
        forms = {"CheapScan": lambda: scan(pairs, rows), "cuDNN on one-hot windows": lambda: model.cheap(*arguments)}
        for name, call in forms.items():

            def measure(call=call):
                torch.testing.assert_close(call()[0], model.cheap(*arguments)[0], rtol=0, atol=1e-5)
                row = timed(device_ms, call, 3)
                return row | {"candidates/s": 1e3 * n / row["ms"], "TFLOP/s": 2 * n * 23_000 / row["ms"] / 1e9}

            yield {"form": name, "candidates": n}, measure


def energies(ceiling: dict) -> Section:
    """Windows a second of the duplex energies of every candidate, device and CPU; equal values."""
    candidates = pairformer.scan(*testing.heavy_tailed_pairs(random.Random(0), 64, mean=1900))
    n = len(candidates.start)
    pairs, rows = DevicePairs.of(candidates.batch, "cuda"), Rows.of(candidates, "cuda")
    every = torch.arange(n, device="cuda")
    forms = {
        "duplex_energy": (device_ms, lambda: duplex_energy(pairs, rows, every)),
        "C++, all cores": (wall_ms, lambda: candidates.duplex_energy(threads=0)),
    }
    for name, form in forms.items():

        def measure(form=form):
            found = torch.as_tensor(form[1]()).cpu()
            np.testing.assert_array_equal(found, candidates.duplex_energy(threads=0))
            row = timed(*form)
            return row | {"windows/s": 1e3 * n / row["ms"]}

        yield {"form": name, "windows": n}, measure


def scan(ceiling: dict) -> Section:
    """Windows a second of the scan with alignments, device and CPU; equal rows."""
    given = testing.heavy_tailed_pairs(random.Random(0), 2048, mean=1900)
    plain = pairformer.scan(*given)
    pairs = DevicePairs.of(plain.batch, "cuda")
    forms = {
        "esa_scan, sequences on the device": lambda: esa_scan(pairs),
        "esa_scan and the copy of sequences": lambda: esa_scan(DevicePairs.of(plain.batch, "cuda")),
        "C++, all cores, from strings": lambda: pairformer.scan(*given),
    }
    for name, call in forms.items():

        def measure(call=call):
            rows = call()
            for name in ("start", "esa_score", "position", "offsets", "alignment"):
                found = torch.as_tensor(getattr(rows, name)).cpu().numpy()
                np.testing.assert_array_equal(found.view(getattr(plain, name).dtype), getattr(plain, name))
            row = timed(wall_ms, call)
            return row | {"windows/s": 1e3 * pairs.n_windows / row["ms"]}

        yield {"form": name, "windows": pairs.n_windows}, measure


def pipeline(ceiling: dict) -> Section:
    """Pairs a second from strings, K = 64, by what is asked for: pairs and their sites, a table of these, or pairs
    alone, which C++ adds up on the CPU but for short UTRs."""
    some, many = (64, 64) if COMPILING else (2048, 32_768)
    mirnas, utrs = testing.heavy_tailed_pairs(random.Random(0), some, mean=1900)
    given = [mirnas * (many // some), [utr[at:] + utr[:at] for at in range(many // some) for utr in utrs]]
    rows = [("default", "triton", some, "sites")]
    rows += [("default", engine, many, "sites") for engine in ("triton", "triton-bf16")]
    rows += [("default", "triton", many, "table of sites"), ("paper", "triton", many, "sites")]
    rows += [(model, engine, some, "sites") for model in ("default", "paper") for engine in ("torch", "native")]
    rows += [("default", engine, many, "pairs alone") for engine in ("triton", "native")]

    @functools.cache
    def expected(model):
        return Scorer(model, k_max=K_MAX, engine="native").score(*(part[:some] for part in given)).logit

    for model, engine, n, asked in rows:

        def measure(model=model, engine=engine, n=n, asked=asked):
            device, pairs = "cpu" if engine == "native" else "cuda", [part[:n] for part in given]
            scorer = Scorer(model, k_max=K_MAX, engine=engine, device=device, sites=asked != "pairs alone")

            def call():
                found = scorer.score(*pairs)
                return found.site_table() if asked == "table of sites" else found

            logit = scorer.score(*(part[:some] for part in pairs)).logit
            close = np.mean(np.abs(logit - expected(model)) < (0.1 if engine == "triton-bf16" else 1e-3))
            assert close > 0.99, f"{engine}: only {close:.3f} of the logits are the native engine's"
            row = timed(wall_ms, call, 3)
            return row | {"pairs/s": 1e3 * n / row["ms"]}

        yield {"model": model, "engine": engine, "asked for": asked, "pairs": n}, measure


def stages(ceiling: dict) -> Section:
    """Where the time of 64 pairs goes, one batch alone, beside the paper's milliseconds on an RTX 4090 (App. H)."""
    engine = TritonEngine.load("default")
    model, given = engine.model, testing.heavy_tailed_pairs(random.Random(0), 64, mean=1900)
    candidates = pairformer.scan(*given, model.config.esa_min)
    cheap_logit, keys = model.cheap_scan(candidates)
    selection = model.select(candidates, cheap_logit, keys, K_MAX)
    with torch.inference_mode(), exact_float32():
        encoded = model.encode_selected(candidates, selection.rows)
        tokens = model.tokenize(candidates, selection.rows, selection.offsets, *encoded)

        def copied():
            model._last.candidates = None
            return model.cheap_scan(candidates)

        calls = {
            "scan (C++)": (lambda: pairformer.scan(*given, model.config.esa_min), None),
            "copies and cheap scan": (copied, 15.8),
            "selection (C++)": (lambda: model.select(candidates, cheap_logit, keys, K_MAX), 6.5),
            "expensive encoder on K": (lambda: model.encode_selected(candidates, selection.rows), 2.2),
            "tokens": (lambda: model.tokenize(candidates, selection.rows, selection.offsets, *encoded), 0.8),
            "aggregation": (lambda: model.aggregate(tokens), 3.1),
        }
        for name, (call, paper) in calls.items():
            yield {"stage": name, "paper, ms": paper}, functools.partial(timed, wall_ms, call, 20)


def training(ceiling: dict) -> Section:
    """A step of the aggregator, forward, backward and AdamW: time and peak memory. Stage 3 trains in float32."""
    sizes = {"default": AggregatorConfig(), "paper": AggregatorConfig.paper()}
    for (size, config), (bags, n) in itertools.product(sizes.items(), ((1024, 64), (128, 512))):
        torch.manual_seed(0)
        tokens = torch.randn(bags, n, 387, device="cuda")
        mask = torch.rand(bags, n, device="cuda") < 0.9
        label = torch.rand(bags, device="cuda").round()

        def measure(form, half, config=config, tokens=tokens, mask=mask, label=label):
            torch.manual_seed(1)
            model = SetTransformer(387, config).cuda().eval()
            with torch.no_grad():
                exact = model(tokens, mask)
                with torch.autocast("cuda", torch.bfloat16, enabled=half):
                    noise = (model(tokens, mask).float() - exact).norm()
                    if form == "kernels":
                        use_kernels(model)
                    error = (model(tokens, mask).float() - exact).norm()  # logits are near 0 before they learn
            assert error <= (2 * noise if half else 1e-4 * exact.norm()), f"{error}, SDPA has {noise}"
            model.train()
            run = torch.compile(model, dynamic=False) if form == "torch.compile" else model
            optimizer = torch.optim.AdamW(model.parameters(), fused=True)

            def step():
                with torch.autocast("cuda", torch.bfloat16, enabled=half):
                    logit = run(tokens, mask)
                F.binary_cross_entropy_with_logits(logit.float(), label).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            step()
            torch.cuda.reset_peak_memory_stats()
            row = timed(wall_ms, step, 15)
            return row | {"peak, MiB": torch.cuda.max_memory_allocated() / 2**20}

        for half, form in itertools.product((False, True), ("SDPA", "kernels", "torch.compile")):
            if form != "torch.compile" or n == K_MAX:  # compiling takes half a minute
                labels = {"size": size, "B": bags, "K": n, "precision": "bf16" if half else "fp32", "form": form}
                yield labels, functools.partial(measure, form, half)


def axial(ceiling: dict) -> Section:
    """Row and column attention of a pair latent, forward and backward, bf16: time, and peak memory beyond the input."""
    for side, heads in ((500, 4), (200, 4)):
        torch.manual_seed(0)
        qkv = torch.randn(1, side, side, 3, heads, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        lengths = torch.tensor([side], device="cuda", dtype=torch.int32)
        slope = torch.randn(1, side, side, heads, 16, device="cuda", dtype=torch.bfloat16)

        def copied(qkv, axis, lengths):
            lines = (qkv if axis == "row" else qkv.transpose(1, 2)).contiguous()
            out = sdp_axial_attention(lines, "row", lengths)
            return out if axis == "row" else out.transpose(1, 2).contiguous()

        forms = {"axial_attention": axial_attention, "SDPA, strided": sdp_axial_attention,
                 "SDPA, transposed copies": copied, "eager": reference.axial_attention}  # fmt: skip
        expected = [reference.axial_attention(qkv.detach().float(), axis, lengths) for axis in ("row", "column")]
        for name, attend in forms.items():

            def both(attend=attend, qkv=qkv, lengths=lengths, slope=slope):
                out = [attend(qkv, axis, lengths) for axis in ("row", "column")]
                torch.autograd.grad(out, qkv, [slope, slope])
                return out

            def measure(both=both, expected=expected):
                for a, b in zip(both(), expected, strict=True):
                    assert (off := (a.float() - b).norm() / b.norm()) < 2e-2, f"off by {off:.3g} of the norm"
                torch.cuda.synchronize()
                before = torch.cuda.memory_allocated()
                torch.cuda.reset_peak_memory_stats()
                both()
                peak = (torch.cuda.max_memory_allocated() - before) / 2**20
                return timed(wall_ms, both, 15) | {"peak, MiB": peak}

            yield {"L": side, "heads": heads, "form": name}, measure


# The quick ones and the whole path first, should time run out; the most seconds each may take, and the processes that
# compile its rows by turns: a kernel takes seconds, one after the other.
SECTIONS = {
    "ESA scan": (scan, 40, 1),
    "duplex energies": (energies, 30, 1),
    "cheap scan": (cheap, 30, 1),
    "stages of 64 pairs": (stages, 30, 1),
    "whole path": (pipeline, 150, 1),
    "set attention, forward and backward, bf16": (attention, 90, 4),
    "axial attention, forward and backward, bf16, head width 16": (axial, 60, 1),
    "training step": (training, 120, 7),
    "set attention, forms that may refuse a CUDA graph": (functools.partial(attention, refusing=True), 60, 1),
}


def main(out: Path, seconds: float) -> int:
    """Every section, each by a process of its own."""
    ends, report = time.monotonic() + seconds, begin()
    write(report, out)
    for name, (_, most, _) in SECTIONS.items():
        stop, goes_on = min(time.monotonic() + most, ends), True
        while goes_on:
            left = stop - time.monotonic()
            code, fault = run([name, str(out)], left) if left > 10 else (0, "no time was left")
            report = json.loads((out / "gpu.json").read_text())
            report["sections"].setdefault(name, [])
            report["failed"].setdefault(name, []).extend([fault] if fault else [])
            write(report, out)
            goes_on = code == UNUSABLE or code < 0  # a signal ended it, so its fault stands for the row
        print(table(report, name), flush=True)
    return any(report["failed"].values())


def compile_all() -> int:
    """Call everything once, sections side by side; faults show when they are timed."""
    parts = [(name, part) for name, (*_, parts) in SECTIONS.items() for part in range(parts)]
    with ThreadPoolExecutor(len(parts)) as pool:
        ends = list(pool.map(lambda part: run([part[0], "--compile", str(part[1])], 140), parts))
    for (name, part), (code, fault) in zip(parts, ends, strict=True):
        print(f"{name}, {part}: {fault or ('a row failed' if code else 'compiled')}")
    return 0


def run(arguments: list[str], seconds: float) -> tuple[int, str | None]:
    """One section by a process of its own: its exit code, 0 where time ran out, and why it ended early, or None."""
    process = subprocess.Popen([sys.executable, __file__, "--section", *arguments], start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what compiles for it too, or the log is kept open
        process.wait()
        return 0, f"it took more than {seconds:.0f} s; the rows after those above were not run"
    return code, f"its process ended with {code}" if code not in (0, UNUSABLE) else None


def one_section(name: str, out: Path | None, part: int = 0) -> None:
    """Measure into the report the rows of a section that it has not; with no ``out``, call every n-th of them."""
    section, _, parts = SECTIONS[name]
    report = json.loads((out / "gpu.json").read_text()) if out else {"ceiling": {"GB/s": 1, "bf16 TFLOP/s": 1}}
    rows, failed = (report.setdefault(kind, {}).setdefault(name, []) for kind in ("sections", "failed"))
    first, step = (len(rows) + len(failed), 1) if out else (part, parts)
    try:
        for labels, measure in itertools.islice(section(report["ceiling"]), first, None, step):
            try:
                rows.append(labels | measure())
            except Exception as error:  # the other rows are still worth having
                failed.append(f"{labels}: {repr(error)[:300]}")
            if out:
                write(report, out)  # what there is, should time run out
            try:
                torch.rand(1, device="cuda").item()
            except Exception:
                os._exit(UNUSABLE)  # at once: nothing that uses the device could end well
    except Exception as error:
        failed.append(f"before a row: {repr(error)[:300]}; the rows after those above were not run")
        if out:
            write(report, out)
        raise


def write(report: dict, out: Path) -> None:
    with whole_file(out / "gpu.json") as file:  # a process may be ended while it writes
        file.write(json.dumps(report, indent=1).encode() + b"\n")
    (out / "gpu.md").write_text(head(report) + "".join(table(report, name) for name in report["sections"]))


def begin() -> dict:
    """A report without sections."""
    git = shutil.which("git")
    asked = subprocess.run([git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True) if git else None
    return {
        "device": torch.cuda.get_device_properties(0).name, "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": os.environ.get("COMMIT") or (asked.stdout.strip() if asked else "") or "unknown",
        "ceiling": roofline(), "sections": {}, "failed": {},
    }  # fmt: skip


def head(report: dict) -> str:
    bandwidth, rate = report["ceiling"]["GB/s"], report["ceiling"]["bf16 TFLOP/s"]
    return (f"# {report['device']}, torch {report['torch']}, commit {report['commit']}\n\n"
            f"Measured ceilings: {bandwidth:.0f} GB/s, {rate:.0f} TFLOP/s in bf16.\n")  # fmt: skip


def table(report: dict, name: str) -> str:
    """Markdown of a section."""
    rows, lines = report["sections"][name], [f"\n## {name}\n"]
    if rows:
        lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    lines += [f"\nFailed: {error}" for error in report["failed"][name]]
    return "\n".join(lines) + "\n"


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


if __name__ == "__main__":
    if sys.argv[1] == "--section":
        one_section(sys.argv[2], *((None, int(sys.argv[4])) if COMPILING else (Path(sys.argv[3]),)))
    else:
        sys.exit(compile_all() if COMPILING else main(Path(sys.argv[1]), float(*sys.argv[2:3] or ["inf"])))
