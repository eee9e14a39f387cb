"""Training of a structure model: a stage on a thermodynamic teacher's pair probabilities, then known structures."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pairformer.config import check
from pairformer.data import load_utrs
from pairformer.fold_config import FoldConfig, FoldStageConfig, FoldTrainConfig
from pairformer.folding import decode, f1
from pairformer.models.rnaformer import (
    RNAformer,
    each_on_one_core,
    encode,
    fold_loss,
    load_onto,
    pair_probabilities,
)
from pairformer.saved import whole_file
from pairformer.structures import (
    Structures,
    load_known,
    read_structures,
    rnafold,
    save_structures,
    teacher_sequences,
)
from pairformer.training import claim, finished
from pairformer.training.loop import fit

CHECKED = 300  # held-out RNAs that every epoch is scored on
THRESHOLDS = (None, *np.round(np.arange(0.1, 0.65, 0.05), 2).tolist())  # None: each RNA its own


def prepare(
    folder: Callable[[], Path], out: Path, max_length: int, config: FoldTrainConfig, processes: int = 1
) -> tuple[Structures, Structures | None]:
    """Known structures and the teacher's folds, made once: ``known.npz`` and ``teacher.npz`` in ``out/rows``.

    Where both are there, neither the data folder nor the libraries that read it and fold are needed.

    Args:
        folder: says where the data folder is, when it is needed.
        out: run directory.
        max_length: of the model.
        config: of the training.
        processes: that fold.

    Raises:
        ValueError: what is there was made with other settings, or is damaged.
    """
    settings = {name: getattr(config, name) for name in ("rng_seed", "teacher_rows", "validation")}
    path, teacher = out / "rows" / "known.npz", out / "rows" / "teacher.npz"
    loaded = None if path.exists() else load_known(folder(), max_length)  # before OUT is taken for this run
    claim(out / "rows", {"max_length": max_length, **settings})
    if loaded is not None:
        with whole_file(path) as file:
            save_structures(loaded, file)
    known = read_structures(path)
    if not config.teacher_rows:
        return known, None
    if not teacher.exists():
        utrs = list(load_utrs(folder()).values())
        rng = np.random.default_rng([config.rng_seed, zlib.crc32(b"teacher")])
        pool = known.take(~held_out(known, config.validation))
        sequences = teacher_sequences(pool, utrs, config.teacher_rows, max_length, rng)
        with whole_file(teacher) as file:
            save_structures(rnafold(sequences, processes), file)
    return known, read_structures(teacher)


def held_out(known: Structures, one_in: int) -> NDArray[np.bool_]:
    """(B,) True for the rows of one family in so many, told by a hash of its name; never for those without one."""
    return np.array([family != "" and zlib.crc32(family.encode()) % one_in == 0 for family in known.family], bool)


def read_start(start: str | Path, config: FoldConfig, validation: int) -> RNAformer:
    """The model that training goes on from.

    Args:
        start: its name or directory.
        config: of the model that is to be trained.
        validation: one family in so many is held out from it.

    Raises:
        ValueError: it is of another form, or other families were held out from it.
        FileNotFoundError: no such ``start``.
    """
    given = RNAformer.load(start)
    own = ["window", "passes", "threshold", "dropout"]
    own += [name for name, free in (("max_length", config.distance_buckets), ("energies", config.energies)) if free]
    for name, value in given.config.to_dict().items():
        now = getattr(config, name)
        check(name in own or now == value, name, f"be {value}, as in the model {start} that training goes on from", now)
    before = given.metadata.get("train", {}).get("validation", validation)
    check(validation == before, "validation", f"be {before}, as in the model {start}, which learnt other families else",
          validation)  # fmt: skip
    return given


def halves_are_slow(device: str) -> bool:
    """Whether it is a CPU without instructions for bfloat16, as far as oneDNN, by which PyTorch multiplies, tells."""
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    return torch.device(device).type == "cpu" and known and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Draw:
    """What a step sees: RNAs of about one length, drawn by weight, of so many bases together and, unless 0, cells.

    A family of n RNAs has the weight of sqrt(n); RNAs without a family have, each, the mean weight of the others.
    """

    def __init__(self, structures: Structures, bucket: int, tokens: int, cells: int = 0) -> None:
        self.structures = structures
        length = np.maximum(1, -(-structures.length // bucket) * bucket)
        _, family, size = np.unique(structures.family.astype(str), return_inverse=True, return_counts=True)
        weight, single = 1 / np.sqrt(size[family]), structures.family == ""
        weight[single] = 1.0 if single.all() else weight[~single].mean()
        lengths = np.unique(length)
        self.buckets = [np.flatnonzero(length == value) for value in lengths]
        self.count = [max(1, min(tokens // n, cells // n**2 if cells else tokens)) for n in lengths.tolist()]
        self.weight = [weight[rows] / weight[rows].sum() for rows in self.buckets]
        share = np.array([weight[rows].sum() for rows in self.buckets]) / self.count  # as many steps as rows need
        self.share = share / share.sum()

    def __call__(self, rng: np.random.Generator) -> Structures:
        at = rng.choice(len(self.buckets), p=self.share)
        return self.structures.take(rng.choice(self.buckets[at], self.count[at], p=self.weight[at]))


def train_fold(
    known: Structures,
    teacher: Structures | None,
    out: Path,
    model_config: FoldConfig,
    config: FoldTrainConfig,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = float("inf"),
    metadata: dict | None = None,
    start: str | Path | None = None,
) -> RNAformer | None:
    """Train a structure model; a directory that was stopped is taken up where it stood.

    Args:
        known: structures to learn, up to the model's ``max_length``. One family in ``config.validation`` is held out
            and chooses the probability above which a pair is drawn, or that each RNA has its own.
        teacher: the thermodynamic model's folds; None: no first stage.
        out: checkpoints, ``log.jsonl``, ``run.json`` and, at the end, ``model/``.
        model_config: the model.
        config: the training.
        device: of PyTorch. On a GPU the fused axial attention is used.
        threads: that work on ``config.parts`` of a step on a CPU; of no effect on the result.
        seconds: the epoch in which they run out is the last; the next call goes on.
        metadata: recorded with the weights, beside ``held_out_families_f1``: the mean F1 of the held-out RNAs at the
            threshold they chose.
        start: name or directory of a model that training goes on from, without the first stage; ``model_config`` is
            then its own but for ``max_length``, ``window``, ``passes``, ``threshold``, ``dropout`` and, if it learnt
            without them, ``energies`` (``read_start``).

    Returns:
        The model as saved, or None where ``seconds`` ran out.

    Raises:
        ValueError: ``out`` holds a run with other settings or rows, there is nothing to learn, ``seconds`` is negative
            or NaN, or ``start`` is of another form or held out other families.
        FileNotFoundError: no such ``start``.
    """
    began = time.monotonic()
    check(seconds >= 0, "seconds", "be 0 or more", seconds)
    known = known.take(known.length <= model_config.max_length)
    aside = held_out(known, config.validation)
    checked, known = known.take(aside), known.take(~aside)
    check(len(known) > 0, "known", f"have a structure of {model_config.max_length} bases at most to learn", 0)
    check(teacher is not None or not config.tune.teacher, "teacher", "be given where tune has a share of it", None)
    alone = config.parts == 1 or not model_config.dropout
    check(alone, "parts", "be 1 with dropout, whose numbers are drawn in no fixed order", config.parts)
    rows = {"known": known.sha256(), "teacher": None if teacher is None else teacher.sha256()}
    torch.manual_seed(config.rng_seed)
    model = RNAformer(model_config)
    begun = {}
    if start is not None:
        given = read_start(start, model_config, config.validation)
        state = given.state_dict()
        if model_config.energies and not given.config.energies:  # new to it: of no weight at first
            state["embed.energy.weight"] = torch.zeros_like(model.embed.energy.weight)
        model.load_state_dict(state)
        begun = {"start_sha256": given.metadata["model_sha256"]}
    claim(out, {"model": model_config.to_dict(), "train": asdict(config), "rows_sha256": rows, **begun})
    model = model.to(device)
    with each_on_one_core(model, threads) as work:
        for name in ("teach", "tune") if teacher is not None and start is None else ("tune",):
            stage: FoldStageConfig = getattr(config, name)
            trained_before = finished(out / f"{name}.pt", stage.epochs)
            left = seconds - (time.monotonic() - began)
            run = _Stage(name, model, known, teacher, checked, config, stage, work, threads)
            done = fit(name, model, stage.steps, run.step, replace(stage, batch_size=1), out, config.rng_seed,
                       run.validate, warmup=stage.warmup, seconds=left)  # fmt: skip
            out_of_time = not trained_before and time.monotonic() - began > seconds
            if not done or (name == "teach" and out_of_time):
                return None
    counts = {"known": len(known), "teacher": 0 if teacher is None else len(teacher)}
    about = {"trained_on": counts, "rows_sha256": rows, "train": asdict(config), "torch": torch.__version__}
    about |= begun | (metadata or {})
    model.save(out / "model", about)
    served = load_onto(out / "model", device)
    if len(checked):
        scores = _mean_f1(served, checked, THRESHOLDS, threads, False)
        best = len(scores) - 1 - int(np.argmax(scores[::-1]))  # of equal ones the largest
        served.config = replace(model_config, threshold=THRESHOLDS[best])
        about["held_out_families_f1"] = round(float(scores[best]), 4)
        served.save(out / "model", about)
    return RNAformer.load(out / "model")


class _Stage:
    """Loss and validation of one stage."""

    def __init__(self, name, model, known, teacher, checked, config, stage, work, threads) -> None:
        self.name, self.model, self.config, self.stage = name, model, config, stage
        self.work, self.threads = work, threads
        self.checked = checked.take(np.arange(min(CHECKED, len(checked))))
        self.known = Draw(known, config.bucket, stage.batch_size, stage.cells) if stage.teacher < 1 else None
        self.teacher = Draw(teacher, config.bucket, stage.batch_size, stage.cells) if stage.teacher > 0 else None
        self.device = model.head.weight.device

    def step(self, rows: NDArray[np.int64], epoch: int) -> Tensor:
        """Loss of a step whose RNAs, passes and kept cells depend on seed, stage, epoch and number alone."""
        config = self.config
        rng = np.random.default_rng([config.rng_seed, zlib.crc32(self.name.encode()), epoch, int(rows[0])])
        draw = self.teacher if rng.random() < self.stage.teacher else self.known
        assert draw is not None  # the share of the other is 0
        batch = draw(rng)
        passes = int(rng.integers(config.least_passes, config.most_passes + 1))
        seeds = rng.integers(2**62, size=config.parts)
        if config.parts == 1:
            return self._loss(batch, passes, int(seeds[0]))
        parts = [batch.take(part) for part in np.array_split(np.arange(len(batch)), config.parts) if len(part)]
        parameters = list(self.model.parameters())

        def gradients(part: Structures, seed: int) -> tuple[Tensor, Sequence[Tensor]]:
            loss = self._loss(part, passes, seed) * (len(part) / len(batch))
            return loss.detach(), torch.autograd.grad(loss, parameters)

        found = list(self.work(gradients, parts, seeds.tolist()))
        # A number with the value of the loss and, for each parameter, the sum of the parts' gradients.
        line = sum((p * sum(g)).sum() for p, *g in zip(parameters, *(grads for _, grads in found), strict=True))
        return line + (sum(loss for loss, _ in found) - line).detach()

    def validate(self) -> dict[str, float]:
        """Mean F1 of some held-out RNAs."""
        return {"f1": float(_mean_f1(self.model, self.checked, (0.5,), self.threads, self.config.half)[0])}

    def _loss(self, batch: Structures, passes: int, seed: int) -> Tensor:
        codes, lengths = encode(batch.sequence.tolist())
        side, padded = codes.shape[1], bool(lengths.min() < codes.shape[1])
        row = np.repeat(np.arange(len(batch)), [len(pairs) for pairs in batch.pairs])
        place = torch.from_numpy(np.column_stack([row, np.concatenate(batch.pairs)]).T)
        tokens, lengths, (row, i, j) = codes.to(self.device), lengths.to(self.device), place.to(self.device)
        target = torch.zeros(len(batch), side, side, device=self.device)
        target[row, i, j] = target[row, j, i] = torch.from_numpy(np.concatenate(batch.probability)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.half):
            logit = self.model(tokens, lengths if padded else None, passes)
        generator = torch.Generator(self.device).manual_seed(seed)
        return fold_loss(logit, target, lengths, self.config.keep_share, generator)


def _mean_f1(
    model: RNAformer, rows: Structures, thresholds: Sequence[float | None], threads: int, half: bool
) -> NDArray[np.float64]:
    """Mean F1 at each threshold."""
    total = np.zeros(len(thresholds))
    found = pair_probabilities(model, rows.sequence.tolist(), model.config.passes, threads, half)
    for probability, pairs in zip(found, rows.pairs, strict=True):
        total += [f1(decode(probability, threshold, min_loop=3), pairs) for threshold in thresholds]
    return total / max(1, len(rows))
