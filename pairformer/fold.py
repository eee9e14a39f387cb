"""``pairformer.fold``: sequences in, secondary structures out."""

from __future__ import annotations

import functools
import html
import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pairformer import _core
from pairformer._core import LONGEST
from pairformer.config import as_int, check, usable_threads
from pairformer.fold_config import FoldConfig
from pairformer.folding import METHODS, dot_bracket, drawn, equilibrium, expected_f1
from pairformer.predict import in_batches
from pairformer.saved import model_files
from pairformer.scan import IUPAC, Strings, Texts, as_strings

if TYPE_CHECKING:
    from pairformer.models import RNAformer

GROUP = 20_000  # bases folded before their results are put together: bounds memory whatever their number
FAINT = 0.001  # a pair of less probability is not kept
ENERGIES = "energies"
NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
AMBIGUOUS = str.maketrans("TRYSWKMBDHV", "UNNNNNNNNNN")


@dataclass(frozen=True, eq=False)
class Fold:
    """Secondary structure of one sequence; positions count from 0."""

    sequence: str
    """Letters ACGUN, as they were read."""
    pairs: NDArray[np.int64]
    """(N, 2) base pairs, i < j, in ascending order."""
    structure: str
    """Dot-bracket of L letters, by :func:`pairformer.folding.dot_bracket`; with method "raw" of the pairs that
    "nested" would draw. Pairs beyond 30 kinds of brackets are left out."""
    unpaired: NDArray[np.float32]
    """(L,) probability that a base has no partner: 1 - its pairs' sum, at least 0. It is averaged over windows, so the
    two need not add up to 1: a base may be open in windows without its partner."""
    possible: NDArray[np.int64]
    """(M, 2) pairs of probability 0.001 and more with ``min_loop`` bases between them, i < j, in ascending order."""
    probability: NDArray[np.float32]
    """(M,) theirs."""
    threshold: float
    """Of ``pairs``, each of which has a probability above it: the one asked for, or the RNA's own; NaN of a sequence
    that was not folded."""
    message: str | None = None
    """Why there is nothing; None for a sequence that was folded."""

    @property
    def expected_f1(self) -> float:
        """How sure ``pairs`` are: their F1, were each pair true with its probability, by those in ``possible``
        (:func:`pairformer.folding.expected_f1`); NaN of a sequence that was not folded."""
        return math.nan if self.message else expected_f1(self.pairs, self.possible, self.probability)

    def matrix(self) -> NDArray[np.float32]:
        """(L, L) symmetric pair probabilities, those under 0.001 as 0."""
        full = np.zeros((len(self.sequence),) * 2, np.float32)
        i, j = self.possible.T
        full[i, j] = full[j, i] = self.probability
        return full

    def svg(self, name: str = "") -> str:
        """Arc diagram: the letters in a row, every tenth numbered (of more than 200 every fiftieth), an arc over each
        pair, darker where the pair is more probable.

        Args:
            name: title of the drawing, if it has one.
        """
        step, margin, count = 10, 20, len(self.sequence)
        reach = max((int(j - i) for i, j in self.pairs), default=0) * step / 2
        base, width = reach + margin, step * max(0, count - 1) + 2 * margin
        size = f'width="{width}" height="{base + 32:g}" viewBox="0 0 {width} {base + 32:g}"'
        place = dict(zip(map(tuple, self.possible.tolist()), self.probability.tolist(), strict=True))
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="monospace" font-size="10" '
            'text-anchor="middle">'
        ]
        if name:
            parts.append(f"<title>{html.escape(NOT_XML.sub('?', name), quote=False)}</title>")
        for i, j in self.pairs.tolist():
            left, right, radius = margin + i * step, margin + j * step, (j - i) * step / 2
            parts.append(
                f'<path d="M{left} {base:g}A{radius:g} {radius:g} 0 0 1 {right} {base:g}" fill="none" '
                f'stroke="#1f4e79" stroke-opacity="{0.2 + 0.8 * place[i, j]:.2f}"><title>{i + 1}-{j + 1} '
                f"{place[i, j]:.3f}</title></path>"
            )
        parts += [
            f'<text x="{margin + at * step}" y="{base + 12:g}">{letter}</text>'
            for at, letter in enumerate(self.sequence)
        ]
        ends = ((margin - 13, "5'"), (width - margin + 13, "3'"))
        parts += ['<g fill="#555">', *(f'<text x="{x}" y="{base + 12:g}">{end}</text>' for x, end in ends)]
        every = 10 if count <= 200 else 50
        for number in range(every, count + 1, every):
            x = margin + (number - 1) * step
            parts.append(f'<path d="M{x} {base + 15:g}v3" stroke="#555"/>')
            parts.append(f'<text x="{x}" y="{base + 28:g}">{number}</text>')
        return "\n".join([*parts, "</g>", "</svg>\n"])


def fold(
    sequence: Texts,
    *,
    model: str | Path = "fold",
    passes: int | None = None,
    threshold: float | None = None,
    method: str = "nested",
    min_loop: int = 3,
    device: str = "auto",
    threads: int = 0,
) -> Fold | list[Fold]:
    """Secondary structure of an RNA, by RNAformer or by energies alone.

    A sequence longer than the model's window W is folded in windows of W bases, one every W / 2 and one that ends with
    the sequence. The probability of a pair is its mean over the windows that hold both bases, 0 where none does; that
    of a base to be unpaired is its mean over the windows that hold it.

    Args:
        sequence: letters ACGU, any case, T read as U, N and other ambiguity codes as N; or a list or a
            table's column of them.
        model: "fold" for the weights shipped with the package, or a directory written by ``RNAformer.save``; "energies"
            for :func:`pairformer.folding.equilibrium`, far faster and without PyTorch: the threshold is 0.5, there are
            no passes, and a CPU works. W is 500 in both.
        passes: over the stack; None for the model's own number.
        threshold: a pair is drawn if its probability is above, at least 0.001; None for the model's own: with "fold"
            each RNA has that of 0.1 to 0.5 whose pairs have the greatest expected F1
            (:func:`pairformer.folding.decode`).
        method: see :func:`pairformer.folding.decode`.
        min_loop: least number of bases between two that pair; nearer ones have probability 0.
        device: "auto" (a CUDA device if there is one), "cpu", "cuda", ... On a GPU the fused axial attention is used
            where Triton is installed; it is tuned, once on a machine, when it first meets RNAs of about a length.
        threads: 0 for all this process may use; on a CPU.

    Returns:
        Fold, or a list of them. An empty sequence has an empty Fold. In a list an invalid sequence keeps its place,
        with nothing but a message.

    Raises:
        ValueError: an invalid single sequence, a setting out of range, or a damaged model.
        TypeError: ``sequence`` is neither a string nor a sequence, or a setting is of another kind.
        FileNotFoundError: no such model.
        ImportError: PyTorch is missing.

    Source: RNAformer (arXiv 2307.10073), inference; windows and nested pairs are not published.
    """
    texts = as_strings("sequence", sequence)
    folder = Folder(model, passes, threshold, method, min_loop, device, threads)
    found = folder.fold([texts] if isinstance(texts, str) else texts)
    if not isinstance(texts, str):
        return found
    if found[0].message is not None:
        raise ValueError(found[0].message)
    return found[0]


class Folder:
    """A loaded structure model and its settings, for folding many batches; see :func:`fold` for the arguments."""

    def __init__(
        self,
        model: str | Path = "fold",
        passes: int | None = None,
        threshold: float | None = None,
        method: str = "nested",
        min_loop: int = 3,
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        if model == ENERGIES:
            check(passes is None, "passes", "be None for energies, which make none", passes)
            check(str(device) in ("auto", "cpu"), "device", "be auto or cpu for energies", repr(device))
            self.model, config = None, FoldConfig(max_length=LONGEST)
        else:
            if importlib.util.find_spec("torch") is None:
                raise ImportError(
                    f"model {model} needs PyTorch; install pairformer with its extra torch, as in "
                    "pip install '.[torch]', or take model energies"
                )
            from pairformer.engines import usable_device

            self.model = _loaded(*model_files(model, FoldConfig), usable_device(device))
            config = self.model.config
        given: dict[str, Any] = {"passes": passes, "threshold": threshold}
        self.config = replace(config, **{name: x for name, x in given.items() if x is not None})
        self.window = config.window or config.max_length
        check(method in METHODS, "method", f"be one of {', '.join(METHODS)}", repr(method))
        self.method, self.min_loop = method, min(as_int("min_loop", min_loop), self.window)
        check(self.min_loop >= 0, "min_loop", "be 0 or more", min_loop)
        self.threads = usable_threads(threads) or _core.available_threads()

    def fold(self, sequences: Strings) -> list[Fold]:
        """Fold sequences; invalid ones keep their place."""
        faults = [sequence_fault(sequence) for sequence in sequences]
        valid = [s.upper().translate(AMBIGUOUS) for s, fault in zip(sequences, faults, strict=True) if fault is None]
        found = self._fold(valid)
        none = (np.empty((0, 2), np.int64), np.empty(0, np.float32))
        return [next(found) if fault is None else Fold("", none[0], "", none[1], *none, math.nan, fault)
                for fault in faults]  # fmt: skip

    def _fold(self, sequences: list[str]) -> Iterator[Fold]:
        begins = [_windows(len(sequence), self.window) for sequence in sequences]
        pieces = [
            sequence[begin : begin + self.window]
            for sequence, at in zip(sequences, begins, strict=True)
            for begin in at
        ]
        found = (matrix for chunk in in_batches(pieces, str, GROUP) for matrix in self._probabilities(chunk))
        for sequence, at in zip(sequences, begins, strict=True):
            window = min(len(sequence), self.window)
            total = np.zeros((len(sequence), max(1, window)), np.float32)  # [i, j - i]
            count, (windows, unpaired) = np.zeros_like(total), np.zeros((2, len(sequence)), np.float32)
            i, j = np.triu_indices(window, 1 + self.min_loop)
            for begin in at:
                pair = next(found)[i, j]
                total[begin + i, j - i] += pair
                count[begin + i, j - i] += 1
                partners = np.bincount(i, pair, window) + np.bincount(j, pair, window)
                unpaired[begin : begin + window] += np.clip(1 - partners, 0, 1).astype(np.float32)
                windows[begin : begin + window] += 1
            total /= np.maximum(count, 1)
            unpaired /= np.maximum(windows, 1)
            yield self._drawn(sequence, total, unpaired)

    def _probabilities(self, pieces: list[str]) -> list[NDArray[np.float32]]:
        if self.model is None:
            return equilibrium(pieces, self.threads)
        from pairformer.engines import exact_float32
        from pairformer.models.rnaformer import pair_probabilities

        with exact_float32():
            return pair_probabilities(self.model, pieces, self.config.passes, self.threads)

    def _drawn(self, sequence: str, band: NDArray[np.float32], unpaired: NDArray[np.float32]) -> Fold:
        possible = np.argwhere(band >= FAINT)
        possible[:, 1] += possible[:, 0]
        probability, asked = band[band >= FAINT], self.config.threshold
        pairs, threshold = drawn(possible, probability, asked, self.method)
        once = drawn(possible, probability, asked, "nested")[0] if self.method == "raw" else pairs
        structure = dot_bracket(once, len(sequence), skip=True)
        return Fold(sequence, pairs, structure, unpaired, possible, probability, threshold)


@functools.lru_cache(maxsize=4)
def _loaded(directory: Path, files: tuple[tuple[int, int], ...], device: str) -> RNAformer:
    """A model that was read before is kept until its files change."""
    from pairformer.models.rnaformer import load_onto

    return load_onto(directory, device)


def sequence_fault(sequence: object) -> str | None:
    """Why a sequence cannot be folded; None if it can."""
    if not isinstance(sequence, str):
        return f"sequence must be a string, got {type(sequence).__name__}"
    strange = next(((at, letter) for at, letter in enumerate(sequence, 1) if letter not in IUPAC), None)
    if strange is None:
        return None
    at, letter = strange
    return f"sequence must hold letters of the IUPAC nucleic acid code, got {letter!r} at position {at}"


def _windows(length: int, window: int) -> list[int]:
    """Where windows begin that cover a sequence: one every half window, the last ends with it."""
    if length <= window:
        return [0] if length else []
    return [*range(0, length - window, max(1, window // 2)), length - window]
