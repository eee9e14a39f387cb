"""How kernels are launched: on a GPU or interpreted, tuned by one thread at a time, and in which precision."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import triton

INTERPRETED: bool = triton.knobs.runtime.interpret
_tuning = threading.RLock()


def tuned(configs: list[triton.Config], **settings: Any) -> Callable:
    """``triton.autotune`` for threads: it keeps a call's arguments in the kernel while it measures configs."""

    def decorate(kernel: Any) -> Any:
        tuner = triton.autotune(configs, cache_results=True, **settings)(kernel)  # one choice on a machine, one result

        def locked(*args: Any, **kwargs: Any) -> Any:
            with _tuning:
                return type(tuner).run(tuner, *args, **kwargs)

        tuner.run = locked
        return tuner

    return decorate


def precision(dtype: torch.dtype) -> str:
    """Of matrix products. Those of float32 are sums of three in TensorFloat-32, off by a millionth: in "ieee" their
    operands fill more registers than there are. Plain TensorFloat-32 is only where PyTorch's own products are."""
    exact = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32"
    return "tf32x3" if exact else "tf32"
