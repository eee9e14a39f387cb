"""One plain loop for every stage: step, average, validate, log, checkpoint, resume."""

from __future__ import annotations

import json
import math
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pairformer.config import JointStageConfig, StageConfig
from pairformer.saved import whole_file

Step = Callable[[NDArray[np.int64], int], Tensor]
Validate = Callable[[], dict[str, float]]


def fit(
    stage: str,
    module: nn.Module,
    n_rows: int,
    step: Step,
    config: StageConfig,
    run_dir: Path,
    rng_seed: int,
    validate: Validate | None = None,
    joint: nn.Module | None = None,
    warmup: int = 0,
    seconds: float = math.inf,
) -> bool:
    """Train ``module`` in place; at the end it holds the averaged weights of the last epoch, or of the best.

    On a GPU its attention blocks attend by the fused kernels from here on.

    Every epoch draws its order and dropout from (rng_seed, stage, epoch), so a run that was stopped and started again
    gives the same weights as one that was not: on a CPU to the last bit, on a GPU but for what differs between blocks
    that each process tunes anew.

    Args:
        stage: name; the log is ``run_dir/log.jsonl``, the checkpoint ``run_dir/<stage>.pt``.
        module: what is trained.
        n_rows: rows of the training data.
        step: (row numbers of a batch, epoch) -> loss.
        config: optimiser, epochs, average.
        run_dir: created where needed; a checkpoint in it is resumed.
        rng_seed: of this run.
        validate: metrics of the averaged weights after each epoch; the epoch with the best "pr_auc" is kept, the
            earlier of equal ones. Without that figure, or None: the last epoch is kept.
        joint: part of ``module`` trained in the last ``config.joint_epochs`` only.
        warmup: steps over which the learning rate rises to its peak.
        seconds: the epoch in which they run out is the last of this call; the next takes up what is left.

    Returns:
        Whether all epochs are done; only then does ``module`` hold the averaged weights.

    Raises:
        ValueError: there are no rows, or a loss is not finite.
    """
    if n_rows < 1:
        raise ValueError(f"{stage} must have rows to train on, got {n_rows}; give one of its sources a share, and rows "
                         "with a candidate")  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    if any(parameter.is_cuda for parameter in module.parameters()):
        from pairformer.kernels import use_kernels

        use_kernels(module)
    joint_epochs, joint_lr = (
        (config.joint_epochs, config.joint_lr) if isinstance(config, JointStageConfig) else (0, 0.0)
    )
    late = set(joint.parameters()) if joint is not None else set()
    first = [p for p in module.parameters() if p not in late]
    # No decay on vectors: LayerNorm and biases keep their size.
    groups = [
        {"params": [p for p in first if p.ndim > 1], "lr": config.lr, "weight_decay": config.weight_decay},
        {"params": [p for p in first if p.ndim <= 1], "lr": config.lr, "weight_decay": 0.0},
        {"params": [p for p in module.parameters() if p in late], "lr": joint_lr, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    per_epoch = math.ceil(n_rows / config.batch_size)
    begin_joint = (config.epochs - joint_epochs) * per_epoch
    total = config.epochs * per_epoch
    begins = [begin for begin, group in zip((0, 0, begin_joint), groups, strict=True) if group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        [lambda s, begin=begin: _cosine(s, begin, total, warmup) for begin in begins],  # type: ignore[misc]
    )
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    best: dict = {}
    done = _resume(run_dir / f"{stage}.pt", module, optimizer, schedule, average, best)
    started = time.perf_counter()
    for epoch in range(done, config.epochs):
        seed = [rng_seed, zlib.crc32(stage.encode()), epoch]
        order = np.random.default_rng(seed).permutation(n_rows)
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        training_joint = joint is None or epoch >= config.epochs - joint_epochs
        module.train()
        if joint is not None:
            joint.train(training_joint).requires_grad_(training_joint)
        batches = np.array_split(order, per_epoch)
        losses: list[float] = []
        began = time.perf_counter()
        if epoch > done and began - started > seconds:
            return False
        with click.progressbar(batches, label=f"{stage} epoch {epoch + 1}/{config.epochs}", file=sys.stderr) as bar:
            for rows in bar:
                optimizer.zero_grad(set_to_none=True)
                loss = step(rows, epoch)
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), config.clip)
                optimizer.step()
                schedule.step()
                _update(average, module, config.ema_decay, epoch * per_epoch + len(losses))
                losses.append(float(loss.detach()))
        if not np.isfinite(losses).all():
            raise ValueError(f"{stage} must have a finite loss, got {losses[np.argmin(np.isfinite(losses))]} in epoch "
                             f"{epoch + 1}; lower its learning rate")  # fmt: skip
        record = {"stage": stage, "epoch": epoch + 1, "loss": round(float(np.mean(losses)), 6)}
        record |= {"seconds": round(time.perf_counter() - began, 1)}
        if validate is not None:
            metrics = _with_average(module, average, validate)
            if metrics.get("pr_auc", -1.0) > best.get("pr_auc", -1.0):
                best = {"pr_auc": metrics["pr_auc"], "average": {n: value.clone() for n, value in average.items()}}
            record |= {name: round(value, 4) for name, value in metrics.items()}
        with (run_dir / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        click.echo(json.dumps(record), err=True)
        _checkpoint(run_dir / f"{stage}.pt", module, optimizer, schedule, average, best, epoch + 1)
    module.load_state_dict(best.get("average", average))
    module.requires_grad_(True).eval()
    return True


def _cosine(step: int, begin: int, end: int, warmup: int = 0) -> float:
    """Multiplier of the learning rate: 1 at ``begin``, 0 at ``end``, 0 before; less in the first steps of all."""
    if step < begin or end <= begin:
        return 0.0
    return (
        min(1.0, (step + 1) / max(warmup, 1)) * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - begin) / (end - begin))))
    )


@torch.no_grad()
def _update(average: dict[str, Tensor], module: nn.Module, decay: float, step: int) -> None:
    """average = decay * average + (1 - decay) * weights; the decay grows to its value over the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in module.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def _with_average(module: nn.Module, average: dict[str, Tensor], validate: Validate) -> dict[str, float]:
    own = {name: value.detach().clone() for name, value in module.state_dict().items()}
    module.load_state_dict(average)
    module.eval()
    with torch.no_grad():
        metrics = validate()
    module.load_state_dict(own)
    return {name: float(value) for name, value in metrics.items()}


def _checkpoint(path: Path, module, optimizer, schedule, average, best, epochs_done: int) -> None:
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "average": average,
        "best": best,
        "epochs_done": epochs_done,
    }
    with whole_file(path) as out:
        torch.save(state, out)


def _resume(path: Path, module, optimizer, schedule, average, best) -> int:
    """Load a checkpoint of this stage if there is one; returns the epochs it has done."""
    device = next(module.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True) if path.exists() else None
    done = state["epochs_done"] if state else 0
    # A run stopped between its log line and its checkpoint does that epoch again.
    log = path.with_name("log.jsonl")
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    kept = "".join(line for line in text.splitlines(True) if not _is_after(line, path.stem, done))
    if kept != text:
        log.write_text(kept, encoding="utf-8")
    if state:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        average.update(state["average"])
        best.update(state["best"])
    return done


def _is_after(line: str, stage: str, epochs_done: int) -> bool:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:  # a line that was being written
        return True
    return record["stage"] == stage and record["epoch"] > epochs_done
