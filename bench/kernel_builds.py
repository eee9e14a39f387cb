"""Compile every kernel for GPUs that need not be there: python bench/kernel_builds.py [ARCH...], default 80 86 89 90.

The kernels' own callers run on CPU tensors, with launches replaced by compilation: of the first configuration that the
tuner would try and that has room, or with ``--all`` of every one that has. It is an error where none has. Prints
registers, bytes of stack and local memory (spills), bytes of shared memory and instructions.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

os.environ.pop("TRITON_INTERPRET", None)  # read when Triton is imported
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

import pairformer

TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
         torch.uint8: "u8", torch.bool: "u1", torch.float64: "fp64"}  # fmt: skip
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB of shared memory a block can have
TOOLS = Path(nvidia.__file__).parent / "bin"


def built(kernel: JITFunction, given: dict, arch: int, options: dict) -> dict[str, int]:
    """Compile one kernel for the arguments it was called with; what it needs of the chip."""
    signature, constants, attributes = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value in (False, True)):
            signature[parameter.name], constants[number,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[number,] = [["tt.divisibility", 16]]
        else:
            wide = isinstance(value, int) and abs(value) >= 2**31
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i64" if wide else "i32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[number,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([TOOLS / command[0], *command[1:], file.name], capture_output=True, text=True, check=True)
            for command in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    size = {"registers": found["REG"], "spills": found["STACK"] + found["LOCAL"], "shared": binary.metadata.shared}
    return size | {"instructions": len(re.findall(r"(?m)^\s+/\*[0-9a-f]+\*/\s+(?!NOP|BRA)", code.stdout))}


def compiling(archs: list[int], every: bool, report) -> None:
    """From now on, launches compile and report."""

    def launch(kernel, configs, args, given):
        given = dict(zip(kernel.arg_names, args, strict=False)) | given
        left = set(archs)
        for config in configs:
            names = ("num_warps", "num_stages", "maxnreg")
            options = {n: v for n in names if (v := getattr(config, n, None)) is not None}
            options |= {n: given[n] for n in ("num_warps", "num_stages", "enable_fp_fusion") if n in given}
            for arch in archs if every else sorted(left):
                found = built(kernel, given | (config.kwargs if config else {}), arch, options)
                if found["shared"] > SHARED[arch] << 10:
                    continue  # the tuner passes it over likewise
                left.discard(arch)
                report(kernel.__name__, arch, config.kwargs | options if config else options, found)
        if left:
            raise RuntimeError(f"{kernel.__name__} must have a configuration with room on sm_{sorted(left)}, got none")

    def tuned(self, *args, **given):
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        configs = self.prune_configs(given)
        launch(self.fn, configs, args, given)

    Autotuner.run = tuned
    JITFunction.run = lambda self, *args, grid, warmup, **given: launch(self, [None], args, given)


def call_attention(dtype: torch.dtype, n: int, heads: int, width: int) -> None:
    """As it is, with dropout, with a bias, forward and backward."""
    from pairformer.kernels.set_attention import set_attention

    query, key, value = (torch.empty(2, n, heads, width, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, n, dtype=torch.bool)
    bias = torch.empty(2, heads, n, n, requires_grad=True)
    set_attention(query, key, value, mask).sum().backward()
    set_attention(query, key, value, mask, dropout=0.1).sum().backward()
    set_attention(query, key, value, mask, bias).sum().backward()


def call_spread() -> None:
    """Many queries of few keys, as in ISAB."""
    from pairformer.kernels.set_attention import set_attention

    query, *rest = (torch.empty(2, n, 8, 32, dtype=torch.bfloat16, requires_grad=True) for n in (512, 16, 16))
    set_attention(query, *rest).sum().backward()


def call_ragged() -> None:
    from pairformer.kernels.set_attention import ragged_set_attention

    rows, ends = torch.empty(100, 8, 32, dtype=torch.bfloat16, requires_grad=True), torch.tensor([0, 40, 100])
    ragged_set_attention(rows, rows, rows, ends, ends, 60, 60).sum().backward()


def call_axial(dtype: torch.dtype, side: int, heads: int, width: int) -> None:
    """Along both axes, forward and backward."""
    from pairformer.kernels.axial_attention import axial_attention

    qkv = torch.empty(1, side, side, 3, heads, width, dtype=dtype, requires_grad=True)
    for axis in ("row", "column"):
        axial_attention(qkv, axis, torch.tensor([side])).sum().backward()


def call_scans() -> None:
    from pairformer.kernels.cheap_scan import CheapScan, windows
    from pairformer.kernels.duplex import duplex_energy
    from pairformer.kernels.esa_scan import DevicePairs, Rows, esa_scan

    from pairformer.models import CheapEncoder

    candidates = pairformer.scan("UGAGGUAGUAGGUUGUAUAGUU", ["ACGU" * 50, "ACGN" * 50])
    pairs, rows = DevicePairs.of(candidates.batch, "cpu"), Rows.of(candidates, "cpu")
    esa_scan(pairs)
    CheapScan(CheapEncoder(), 2020, "cpu")(pairs, rows)
    windows(pairs, rows, torch.arange(3), torch.bfloat16)
    duplex_energy(pairs, rows, torch.arange(3))


def main() -> None:
    archs = [int(arch) for arch in sys.argv[1:] if arch.isdigit()] or [80, 86, 89, 90]
    names = ("kernel", "sm", "configuration", "registers", "spills, bytes", "shared, bytes", "instructions")
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")

    def report(name, arch, options, found):
        text = ", ".join(f"{key} {value}" for key, value in options.items())
        print("| " + " | ".join(map(str, (name, arch, text, *found.values()))) + " |", flush=True)

    compiling(archs, "--all" in sys.argv, report)
    call_scans()
    call_ragged()
    call_spread()
    for dtype, n, heads, width in ((torch.bfloat16, 64, 8, 32), (torch.bfloat16, 512, 8, 32),
                                   (torch.float32, 64, 2, 32), (torch.float32, 64, 2, 64), (torch.float32, 100, 2, 32),
                                   (torch.float16, 200, 2, 128), (torch.float32, 64, 2, 128)):  # fmt: skip
        call_attention(dtype, n, heads, width)
    for dtype, side, heads, width in ((torch.bfloat16, 200, 4, 32), (torch.bfloat16, 500, 4, 16),
                                      (torch.float32, 200, 4, 32), (torch.float16, 200, 2, 128)):  # fmt: skip
        call_axial(dtype, side, heads, width)


if __name__ == "__main__":
    main()
