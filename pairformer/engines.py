"""What computes the path from candidates to logits: the native code of this package, PyTorch, or Triton kernels."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pairformer import _core
from pairformer.bags import Candidates
from pairformer.config import LEAST_SEED, ModelConfig, check
from pairformer.saved import model_files, read_model
from pairformer.selector import Selection, STSelector
from pairformer.sites import select_sites

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from pairformer.kernels.pipeline import FusedPairFormer
    from pairformer.models import PairFormer

ENGINES = ("native", "torch", "triton", "triton-bf16")


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """What an engine found of B bags."""

    pair_logit: NDArray[np.float32]
    """(B,) as in :class:`Scored`."""
    repression: NDArray[np.float32] | None
    """(B,) likewise."""
    contribution: NDArray[np.float64] | None
    """(B,) of all rows together; None likewise."""
    whole: Scored | None = None
    """Of sites too, where these were read."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What an engine computed for B bags, N candidates, M of them selected."""

    pair_logit: NDArray[np.float32]
    """(B,); ``config.empty_logit`` of a bag without candidates."""
    selection: Selection
    """Rows read by the expensive encoder."""
    cheap_logit: NDArray[np.float32]
    """(N,)."""
    logit: NDArray[np.float32]
    """(M,) expensive logit z of the selected rows."""
    weight: NDArray[np.float32] | None
    """(M,) the pair logit minus that without the row's token; None unless asked for."""
    repression: NDArray[np.float32] | None
    """(B,) of the additive head, 0 of a bag without candidates; None without one."""
    contribution: NDArray[np.float32] | None
    """(M,) of each row to its bag's repression; None likewise."""

    def pairs(self) -> ScoredPairs:
        """The same by pair."""
        bags = len(self.pair_logit)
        total: Any = None
        if self.contribution is not None:
            bag = np.repeat(np.arange(bags), np.diff(self.selection.offsets))
            total = np.bincount(bag, self.contribution, bags)
        return ScoredPairs(self.pair_logit, self.repression, total, self)


class Engine(Protocol):
    """A loaded model that scores bags of candidates. Source: PAIR-Former Algorithm 2."""

    name: str
    config: ModelConfig
    metadata: dict
    in_flight: int
    """Batches that are best scored at once, each by a thread."""

    def score(self, candidates: Candidates, k_max: int | None, threads: int, explain: bool) -> Scored:
        """Score bags with at most ``k_max`` selected candidates each; None for the model's own budget."""
        ...

    def score_pairs(self, candidates: Candidates, k_max: int | None, threads: int) -> ScoredPairs:
        """What :meth:`score` says of the bags: of engine native to the last bit, of the others up to rounding."""
        ...


class NativeEngine:
    """The whole path in C++ on the CPU; needs NumPy and safetensors only.

    Args:
        config: of the model.
        arrays: float32 arrays by name, as ``PairFormer.state_dict()`` names them.
        metadata: what else is known of the model.
        variant: one of ``pairformer._core.variants()``; they agree to float32 rounding.

    Raises:
        ValueError: an array is missing, of another shape or one too many, or the processor lacks the variant.
        TypeError: an array is not one of float32.
    """

    name = "native"
    in_flight = 1

    def __init__(
        self, config: ModelConfig, arrays: dict[str, NDArray[np.float32]], metadata: dict, variant: str = "auto"
    ) -> None:
        self.config, self.metadata = config, metadata
        self.model = _core.Model(config, arrays, variant)

    @classmethod
    def load(cls, name_or_path: str | Path = "default", variant: str = "auto") -> NativeEngine:
        """Read a saved model; errors as :func:`pairformer.saved.read_model` and of the class."""
        config, metadata, arrays = read_model(name_or_path, ModelConfig)
        try:
            return cls(config, arrays, metadata, variant)
        except ValueError as error:
            raise ValueError(f"{error}; in {name_or_path}") from error

    @classmethod
    def of(cls, model: PairFormer) -> NativeEngine:
        """The engine of a PyTorch model's weights as they are now."""
        arrays = {name: value.detach().float().cpu().numpy() for name, value in model.state_dict().items()}
        return cls(model.config, arrays, model.metadata)

    def score(
        self, candidates: Candidates, k_max: int | None = None, threads: int = 0, explain: bool = False
    ) -> Scored:
        cheap_logit, keys = self.model.cheap_scan(candidates, threads=threads)
        selection = select_sites(self.config, candidates, cheap_logit, keys, k_max, threads)
        logit, pair_logit, weight, repression, contribution = self.model.aggregate(
            candidates, selection.rows, selection.offsets, explain, threads
        )
        return Scored(pair_logit, selection, cheap_logit, logit, weight, repression, contribution)

    def score_pairs(self, candidates: Candidates, k_max: int | None = None, threads: int = 0) -> ScoredPairs:
        return _sum_sites(self, self.model, candidates, k_max, threads)


class TorchEngine:
    """C++ scan and selection, PyTorch models, on any device; float32 is float32 whatever PyTorch is set to."""

    name = "torch"
    in_flight = 1

    def __init__(self, model: PairFormer) -> None:
        self.model, self.config, self.metadata = model, model.config, model.metadata

    @classmethod
    def load(cls, name_or_path: str | Path = "default", device: str = "auto") -> TorchEngine:
        """Read a saved model onto a device ("auto": a CUDA device if there is one).

        Raises:
            ImportError: PyTorch is missing.
            ValueError: the device is not there.
        """
        if importlib.util.find_spec("torch") is None:
            raise ImportError(
                "engine torch needs PyTorch; install pairformer with its extra torch, as in pip install '.[torch]'"
            )

        from pairformer.models import PairFormer

        return cls(PairFormer.load(name_or_path).to(usable_device(device)))

    def score(
        self, candidates: Candidates, k_max: int | None = None, threads: int = 0, explain: bool = False
    ) -> Scored:
        import torch

        before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        try:
            with exact_float32():
                return self._scored(candidates, k_max, threads, explain)
        finally:
            torch.set_num_threads(before)

    def score_pairs(self, candidates: Candidates, k_max: int | None = None, threads: int = 0) -> ScoredPairs:
        return self.score(candidates, k_max, threads).pairs()

    def _scored(self, candidates: Candidates, k_max: int | None, threads: int, explain: bool) -> Scored:
        result = self.model(candidates, k_max, threads)
        weight, pooled = self.model.weights(result) if explain else None, result.pooled
        pair_logit, *rest = _arrays(pooled.logit, result.logit, weight, pooled.repression, pooled.contribution)
        return Scored(pair_logit, result.selection, result.cheap_logit, *rest)


class TritonEngine(TorchEngine):
    """C++ scan and selection on the CPU, the rest in Triton kernels and PyTorch on a CUDA device.

    Pairs of which additive heads alone say the logit are added up on the CPU too, unless their sites are asked for.
    Batches that threads score at once each have a stream of their own: one batch is scanned or selected while kernels
    work on others. Results do not depend on it.
    """

    def __init__(self, model: FusedPairFormer) -> None:
        import torch

        super().__init__(model)
        self.name = "triton" if model.dtype == torch.float32 else "triton-bf16"
        self.in_flight = 3 if model.device.type == "cuda" else 1  # the interpreter is not for threads
        self._native = NativeEngine.of(model).model
        self._streams: queue.SimpleQueue = queue.SimpleQueue()  # the allocator keeps memory for each: no new ones
        if model.device.type == "cuda":
            for _ in range(self.in_flight):
                self._streams.put(torch.cuda.Stream(model.device))

    @classmethod
    def load(cls, name_or_path: str | Path = "default", device: str = "auto", half: bool = False) -> TritonEngine:
        """Read a saved model onto a CUDA device, or under Triton's interpreter onto the CPU.

        Args:
            name_or_path: "default", or a directory.
            device: "auto" for the first CUDA device.
            half: bfloat16 after selection; cheap logits stay float32.

        Raises:
            ImportError: PyTorch or Triton is missing.
            ValueError: there is no such device.
        """
        for library in ("torch", "triton"):
            if importlib.util.find_spec(library) is None:
                raise ImportError(f"engine triton needs {library}; install pairformer with its extras torch and gpu")
        import torch

        from pairformer.kernels.launch import INTERPRETED
        from pairformer.kernels.pipeline import FusedPairFormer

        kind = "cpu" if INTERPRETED else "cuda"
        device, rule = kind if device == "auto" else device, "a CUDA device that PyTorch finds for engine triton"
        check(device.split(":")[0] == kind, "device", f"be {rule}", f"{device}; pass engine='auto'")
        _check_device(device, rule)
        model = FusedPairFormer.load(name_or_path).to(device).fuse(torch.bfloat16 if half else torch.float32)
        if not INTERPRETED:
            torch.cuda.synchronize(model.device)  # before other streams read the weights
        return cls(model)

    def score(
        self, candidates: Candidates, k_max: int | None = None, threads: int = 0, explain: bool = False
    ) -> Scored:
        import torch

        with exact_float32():
            if self.model.device.type == "cpu":
                return self._scored(candidates, k_max, threads, explain)
            stream = self._streams.get()
            try:
                with torch.cuda.stream(stream):
                    return self._scored(candidates, k_max, threads, explain)
            finally:
                self._streams.put(stream)

    def score_pairs(self, candidates: Candidates, k_max: int | None = None, threads: int = 0) -> ScoredPairs:
        return _sum_sites(self, self._native, candidates, k_max, threads)


def _sum_sites(
    engine: Engine, model: _core.Model, candidates: Candidates, k_max: int | None, threads: int
) -> ScoredPairs:
    """An engine's scores of pairs; where additive heads read all seed sites, the native model adds these up.

    No encoder is asked about a bag whose sites are within the budget and for whose UTR no aggregator counts.
    """
    if not engine.config.aggregator.additive or engine.config.keep_seed != LEAST_SEED:
        return engine.score(candidates, k_max, threads, False).pairs()
    most = STSelector.from_config(engine.config.selector, k_max).config.k_max
    known, logit, repression, contribution = model.sum_sites(candidates, most, threads)
    found, unknown = ScoredPairs(logit, repression, contribution), known == 0
    if 2 * candidates.n_candidates[unknown].sum() >= len(candidates.start):
        return engine.score(candidates, k_max, threads, False).pairs()  # the sites of most are read, so those of all
    if unknown.any():
        rows = np.flatnonzero(np.repeat(unknown, candidates.n_candidates))
        offsets = np.cumsum([0, *np.where(unknown, candidates.n_candidates, 0)])
        asked = engine.score(candidates.take(rows, offsets), k_max, threads, False).pairs()
        for name in ("pair_logit", "repression", "contribution"):
            np.copyto(getattr(found, name), getattr(asked, name), where=unknown)
    return found


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Products of float32 rounded to float32, to neither TensorFloat-32 nor bfloat16, whatever PyTorch is set to.

    The setting is the process's: the first thread that comes in keeps it, the last that leaves puts it back.
    """
    import torch

    known: Any = torch.backends  # torch's types leave some of these out
    places = (known.cuda.matmul, known.cudnn.conv, known.mkldnn.matmul, known.mkldnn.conv)
    with _exact.lock:
        if not _exact.inside:
            _exact.before = tuple(place.fp32_precision for place in places)
            for place in places:
                place.fp32_precision = "ieee"
        _exact.inside += 1
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        with _exact.lock:
            _exact.inside -= 1
            if not _exact.inside:
                for place, value in zip(places, _exact.before, strict=True):
                    place.fp32_precision = value


class _Exact:
    lock = threading.Lock()
    inside = 0
    before: tuple[str, ...] = ()


_exact = _Exact()


def usable_device(device: str) -> str:
    """The device, or for "auto" a CUDA device if there is one; ValueError unless PyTorch can use it."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device, "auto, cpu or one PyTorch finds here")
    return device


def _check_device(device: str, known: str) -> None:
    """Raise ValueError unless PyTorch can use the device."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for an unknown or a missing device
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be {known}, got {device}; {reason}") from error


def _arrays(*values: Any) -> list[Any]:
    """Tensors as float32 arrays, copied from their device at once, for which a GPU is waited for; None stays."""
    import torch

    given = [part.float().flatten() for part in values if part is not None]
    flat, ends = torch.cat(given).cpu().numpy(), np.cumsum([len(part) for part in given])
    parts = iter(np.split(flat, ends[:-1]))
    return [None if part is None else next(parts).reshape(part.shape) for part in values]


def load_engine(name: str, model: str | Path, device: str) -> Engine:
    """An engine by name with a model on a device; one that was loaded before is kept until its files change.

    Args:
        name: one of ``ENGINES``, or "auto": native for ``device`` "auto" or "cpu", torch for any other.
        model: "default", "paper" or a directory written by ``PairFormer.save``.
        device: "auto", "cpu", or for torch any that PyTorch finds, for triton a CUDA device.

    Raises:
        ValueError: unknown engine, a device the engine does not have, or a damaged model.
        FileNotFoundError: no such model.
        ImportError: the engine's library is missing.
    """
    on_cpu = device in ("auto", "cpu")
    if name not in ("auto", *ENGINES):
        raise ValueError(f"engine must be auto or one of {', '.join(ENGINES)}, got {name}")
    if name == "auto":
        name = "native" if on_cpu else "torch"
    if name == "native" and not on_cpu:
        raise ValueError(f"device must be auto or cpu for engine native, got {device}; pass engine='torch'")
    return _loaded(name, *model_files(model), "cpu" if name == "native" else device)


@functools.lru_cache(maxsize=4)
def pool_of(threads: int, process: int) -> Executor:
    """Threads that stay: what libraries find out about a device they keep by thread. A forked process has its own."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads)


@functools.lru_cache(maxsize=4)
def _loaded(name: str, directory: Path, files: tuple[tuple[int, int], ...], device: str) -> Engine:
    if name == "native":
        return NativeEngine.load(directory)
    if name == "torch":
        return TorchEngine.load(directory, device)
    return TritonEngine.load(directory, device, half=name == "triton-bf16")
