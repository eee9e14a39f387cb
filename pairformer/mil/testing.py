"""Does a selector or an aggregator treat bags as sets?

``check_aggregator(module, width=512)`` and ``check_selector(selector)`` raise one AssertionError that lists all that is
wrong. As pytest parameters: ``@pytest.mark.parametrize("check", AGGREGATOR_CHECKS)``, and in the test
``run_aggregator_check(check, module, width=512)``; ``SELECTOR_CHECKS`` likewise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = (5, 1, 0, 12, 7)


# Selectors.


@dataclass(frozen=True)
class _Choice:
    """A selector under test, called on ragged NumPy bags."""

    selector: Any
    k_max: int
    scores: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    positions: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def __call__(self, scores: Any, embeddings: Any, positions: Any, *offsets: Any, **mask: Any) -> list[NDArray]:
        """Rows of each bag."""
        call = getattr(self.selector, "select", self.selector)
        found = call(scores, embeddings, positions, *offsets, **mask)
        rows, ends = (found.rows, found.offsets) if hasattr(found, "rows") else found[:2]
        rows, ends = np.asarray(rows), np.asarray(ends)
        bags = len(offsets[0]) - 1 if offsets else len(mask["mask"])
        if len(ends) != bags + 1 or ends[0] != 0 or ends[-1] != len(rows):
            raise AssertionError(f"offsets of {bags} bags must run from 0 to {len(rows)} (rows), got {ends.tolist()}")
        return [rows[first:last] for first, last in pairwise(ends)]

    def all(self) -> list[NDArray]:
        return self(self.scores, self.embeddings, self.positions, self.offsets)

    def some(self, rows: NDArray[np.int64], sizes: list[int]) -> list[NDArray]:
        """The rule on these rows in bags of these sizes."""
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return self(self.scores[rows], self.embeddings[rows], self.positions[rows], ends)


def _selector_budget(on: _Choice) -> None:
    for bag, (rows, first, last) in enumerate(zip(on.all(), on.offsets, on.offsets[1:], strict=False)):
        n, expected = last - first, min(on.k_max, last - first)
        name = f"bag {bag} of {n} instances with k_max = {on.k_max}"
        assert len(rows) == expected, f"{name} gave {len(rows)} rows, not {expected}"
        assert ((rows >= first) & (rows < last)).all(), f"{name} gave rows of other bags: {rows}"
        assert len(set(rows.tolist())) == len(rows), f"{name} gave a row twice: {rows}"


def _selector_no_bags(on: _Choice) -> None:
    assert on.some(np.arange(0), []) == [], "a batch without bags gave some"
    assert len(on.some(np.arange(0), [0])[0]) == 0, "a batch of one empty bag gave rows"


def _selector_repeats(on: _Choice) -> None:
    for bag, (one, other) in enumerate(zip(on.all(), on.all(), strict=True)):
        assert set(one) == set(other), f"the same call gave other rows of bag {bag}: {sorted(one)}, {sorted(other)}"


def _selector_batch(on: _Choice) -> None:
    for bag, (rows, first, last) in enumerate(zip(on.all(), on.offsets, on.offsets[1:], strict=False)):
        alone = on.some(np.arange(first, last), [last - first])[0] + first
        assert set(alone) == set(rows), f"bag {bag} alone gave {sorted(alone)}, in the batch {sorted(rows)}"


def _selector_order(on: _Choice) -> None:
    rng = np.random.default_rng(1)
    order = np.concatenate([first + rng.permutation(last - first) for first, last in pairwise(on.offsets)])
    moved = on.some(order, np.diff(on.offsets).tolist())
    for bag, (one, other) in enumerate(zip(on.all(), moved, strict=True)):
        assert set(one) == set(order[other]), f"shuffling bag {bag} changed which instances are selected"


def _selector_padding(on: _Choice) -> None:
    if "mask" not in inspect.signature(getattr(on.selector, "select", on.selector)).parameters:
        return
    mask = np.arange(max(SIZES) * 3 + 4) < np.diff(on.offsets)[:, None]
    mask = mask[:, np.random.default_rng(2).permutation(mask.shape[1])]  # padding before and between, too
    expected = [set(rows) for rows in on.all()]
    for filler in (0.0, 1e3):
        padded = []
        for values in (on.scores, on.embeddings, on.positions):
            padded.append(np.full((*mask.shape, *values.shape[1:]), filler, np.float32))
            padded[-1][mask] = values
        for dtype in ("bool", "uint8"):
            found = [set(rows) for rows in on(*padded, mask=mask.astype(dtype))]
            assert found == expected, f"padded bags (mask {dtype}, True = real, padding {filler:g}) gave other rows"


SELECTOR_CHECKS: dict[str, Callable[[_Choice], None]] = {
    "budget": _selector_budget,
    "no_bags": _selector_no_bags,
    "repeats": _selector_repeats,
    "batch": _selector_batch,
    "order": _selector_order,
    "padding": _selector_padding,
}


# Aggregators.


@dataclass(frozen=True)
class _Module:
    """An aggregator under test and random bags for it."""

    forward: Callable[..., Any]
    module: Any
    bags: list[Any]
    """Tensors (n, D)."""
    tolerance: float
    attention: str | None

    def padded(self, bags: list[Any], extra: int = 0, filler: float = 0.0, front: int = 0) -> tuple[Any, Any]:
        """x (B, P, D) with ``extra`` places more than the largest bag needs, ``front`` of them first; mask (B, P)."""
        import torch

        places = max(1, *(len(bag) for bag in bags)) + extra
        x = torch.full((len(bags), places, bags[0].shape[1]), filler, dtype=bags[0].dtype)
        mask = torch.zeros(len(bags), places, dtype=torch.bool)
        for row, bag in enumerate(bags):
            x[row, front : front + len(bag)], mask[row, front : front + len(bag)] = bag, True
        return x, mask

    def logits(self, *batch: Any, of: list[Any] | None = None) -> Any:
        """Logits (B,) of a padded batch, or of bags."""
        import torch

        x, mask = self.padded(of) if of is not None else batch
        with torch.no_grad():
            return self.checked(self.forward(x, mask), len(x))

    def checked(self, logits: Any, bags: int) -> Any:
        import torch

        assert isinstance(logits, torch.Tensor), f"forward must give a tensor of logits, got {type(logits).__name__}"
        assert logits.shape == (bags,), f"logits of {bags} bags must have shape ({bags},), got {tuple(logits.shape)}"
        return logits

    def same(self, found: Any, expected: Any, what: str) -> None:
        moved = (found - expected).abs()
        if not bool((moved <= self.tolerance).all()):
            bag = int(moved.nan_to_num(nan=float("inf")).argmax())
            raise AssertionError(f"{what}: logit of bag {bag} is {found[bag]:.6g}, not {expected[bag]:.6g}"
                                 f" (allowed difference {self.tolerance:g})")  # fmt: skip

    @property
    def filled(self) -> list[Any]:
        return [bag for bag in self.bags if len(bag)]

    def alone(self) -> Any:
        """Logits of the bags that have instances, each computed without padding and company."""
        import torch

        return torch.cat([self.logits(of=[bag]) for bag in self.filled])


def _aggregator_finite(on: _Module) -> None:
    logits = on.alone()
    assert bool(logits.isfinite().all()), f"bags of {[len(b) for b in on.filled]} gave logits {logits.tolist()}"
    assert len(set(logits.tolist())) > 1, "all bags gave the same logit: nothing can be tested"


def _aggregator_repeats(on: _Module) -> None:
    on.same(on.logits(of=on.filled), on.logits(of=on.filled), "the same batch twice gives other logits")


def _aggregator_mask(on: _Module) -> None:
    import torch

    bag = on.filled[0][None]
    mask = torch.arange(bag.shape[1])[None] < bag.shape[1] // 2
    base = on.logits(bag, mask)
    reads_real, reads_padding = (
        not bool((on.logits(torch.where(part[:, :, None], -2 * bag, bag), mask) - base).abs() <= on.tolerance)
        for part in (mask, ~mask)
    )
    assert reads_real or not reads_padding, "mask is read inverted: instances with False are used, with True left out"
    on.same(base, on.logits(of=[bag[0][mask[0]]]), "mask is not obeyed: a bag half masked differs from its real half")
    on.same(on.logits(bag, mask.to(torch.uint8)), base, "mask of uint8 0 and 1 is not read as bool")


def _aggregator_padding(on: _Module) -> None:
    alone = on.alone()
    for extra, filler in ((0, 0.0), (9, 0.0), (9, 1e3), (9, -1e3)):
        batch = on.padded(on.filled, extra, filler)
        on.same(on.logits(*batch), alone, f"padding leaks ({extra} places more than needed, holding {filler:g})")
    on.same(on.logits(*on.padded(on.filled, 3, 1.0, front=3)), alone, "padding leaks (three places in front)")


def _aggregator_order(on: _Module) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    for name, bags in (
        ("reversed", [bag.flip(0) for bag in on.filled]),
        ("shuffled", [bag[torch.randperm(len(bag), generator=generator)] for bag in on.filled]),
    ):
        on.same(on.logits(of=bags), on.logits(of=on.filled), f"order matters (instances {name})")


def _aggregator_batch(on: _Module) -> None:
    import torch

    together = on.logits(of=on.filled)
    halves = torch.cat([on.logits(of=on.filled[:2]), on.logits(of=on.filled[2:])])
    on.same(together, halves, "the rest of the batch matters (bags in one batch against two)")
    on.same(on.logits(of=on.filled[::-1]).flip(0), together, "the rest of the batch matters (bags reversed)")


def _aggregator_one_instance(on: _Module) -> None:
    bag = on.filled[0][:1]
    logits = on.logits(of=[bag, bag])
    assert bool(logits.isfinite().all()), f"a bag of one instance gave {logits.tolist()}"
    on.same(logits[:1], logits[1:], "two equal bags of one instance differ")


def _aggregator_empty(on: _Module) -> None:
    logits = on.logits(of=on.bags)
    empty = [row for row, bag in enumerate(on.bags) if not len(bag)]
    assert bool(logits[empty].isfinite().all()), f"an empty bag (mask all False) gave {logits[empty].tolist()}"
    others = [row for row, bag in enumerate(on.bags) if len(bag)]
    on.same(logits[others], on.alone(), "an empty bag changed the others")
    wider = on.logits(*on.padded(on.bags, 5, 1e3))
    on.same(wider[empty], logits[empty], "the logit of an empty bag depends on its padding")


def _aggregator_gradient(on: _Module) -> None:
    import torch

    x, mask = on.padded(on.bags, 3)
    x.requires_grad_()
    named = on.module.named_parameters() if hasattr(on.module, "named_parameters") else ()
    wanted = {name: parameter for name, parameter in named if parameter.requires_grad}
    total = on.checked(on.forward(x, mask), len(x)).sum()
    found, *others = torch.autograd.grad(total, [x, *wanted.values()], allow_unused=True)
    for name, grad in zip(wanted, others, strict=True):
        finite = grad is None or bool(grad.isfinite().all())
        assert finite, f"the gradient of {name} is not finite where one bag is empty"
    assert found is not None, "no gradient reaches the instances"
    assert bool(found.isfinite().all()), "the gradient of the instances is not finite where one bag is empty"
    assert not bool(found[~mask].any()), "padding has a gradient"
    assert bool(found[mask].any()), "no gradient reaches the instances"


def _aggregator_attention(on: _Module) -> None:
    import torch

    if on.attention is None:
        return
    x, mask = on.padded(on.filled, 4, 1e3)
    with torch.no_grad():
        found = on.forward(x, mask, return_att=True)
    assert isinstance(found, tuple), "return_att=True must give (logits, attention)"
    logits, att = found
    on.same(logits, on.logits(x, mask), "asking for attention changes the logits")
    assert att.shape == mask.shape, f"attention must have shape {tuple(mask.shape)}, got {tuple(att.shape)}"
    assert bool(att[mask].isfinite().all()), "attention of a real instance is not finite"
    with torch.no_grad():
        narrow = on.forward(*on.padded(on.filled), return_att=True)[1][:, : max(len(bag) for bag in on.filled)]
    real = mask[:, : narrow.shape[1]]
    moved = float((att[:, : narrow.shape[1]][real] - narrow[real]).abs().max())
    assert moved <= on.tolerance, f"attention of a real instance moves by {moved:.3g} with the padding"
    if on.attention == "weights":
        assert not bool(att[~mask].any()), f"attention on padding must be 0, got {float(att[~mask].abs().max()):.3g}"
        total = att.sum(1)
        assert bool((total - 1).abs().max() <= 1e-4), f"attention must sum to 1 in each bag, got {total.tolist()}"


def _aggregator_devices(on: _Module) -> None:
    import torch

    if not (torch.cuda.is_available() and hasattr(on.module, "to")):
        return
    expected = on.logits(of=on.filled)
    on.module.to("cuda")
    try:
        x, mask = on.padded(on.filled)
        found = on.logits(x.cuda(), mask.cuda())
        assert found.device.type == "cuda", f"logits of a batch on the GPU are on {found.device}"
        moved = float((found.cpu() - expected).abs().max())
        assert moved <= 1e-3, f"logits on the GPU and the CPU differ by {moved:.3g}"
    finally:
        on.module.to("cpu")


AGGREGATOR_CHECKS: dict[str, Callable[[_Module], None]] = {
    "finite": _aggregator_finite,
    "repeats": _aggregator_repeats,
    "mask": _aggregator_mask,
    "padding": _aggregator_padding,
    "order": _aggregator_order,
    "batch": _aggregator_batch,
    "one_instance": _aggregator_one_instance,
    "empty": _aggregator_empty,
    "gradient": _aggregator_gradient,
    "attention": _aggregator_attention,
    "devices": _aggregator_devices,
}


def check_selector(selector: Any, k_max: int | None = None) -> None:
    """Check a rule of selection on small random bags: sizes 0, 1, fewer and more than ``k_max``.

    Args:
        selector: an object with ``select(scores, embeddings, positions, offsets)``, or such a function; its result
            has ``rows`` and ``offsets``, or begins with these two. Where it takes ``mask=``, padded bags are tried.
        k_max: its budget, 3 to 11; None for ``selector.k_max``.

    Raises:
        AssertionError: with every check that failed and what broke.
    """
    k_max = _budget(selector, k_max)
    _run_all(SELECTOR_CHECKS, lambda check: run_selector_check(check, selector, k_max))


def check_aggregator(
    module: Any, width: int, *, forward: Callable[..., Any] | None = None, attention: str | None = "auto",
    tolerance: float = 1e-5,
) -> None:  # fmt: skip
    """Check a module that aggregates padded bags: ``module(x, mask)`` -> logits (B,), mask True = real.

    Args:
        module: a torch module on the CPU, checked in evaluation mode (its own is restored), or a function.
        width: D of the instances (B, P, D) it reads.
        forward: called as ``forward(x, mask)`` in place of the module, for other signatures.
        attention: "weights" where ``return_att=True`` gives (logits, att) with att (B, P) that sums to 1, "raw" where
            att is before the softmax, None where there is none; "auto": "weights" if ``return_att`` is an argument.
        tolerance: largest difference of two logits that count as equal.

    Raises:
        AssertionError: with every check that failed and what broke.
    """
    _run_all(AGGREGATOR_CHECKS, lambda check: run_aggregator_check(
        check, module, width, forward=forward, attention=attention, tolerance=tolerance))  # fmt: skip


def run_selector_check(check: str, selector: Any, k_max: int | None = None) -> None:
    """One of ``SELECTOR_CHECKS`` by name; arguments as for :func:`check_selector`."""
    _known(check, SELECTOR_CHECKS)
    k_max = _budget(selector, k_max)
    rng = np.random.default_rng(0)
    offsets = np.cumsum([0, *(n * 3 if n > 1 else n for n in SIZES), 2])
    n = int(offsets[-1])
    # Distinct scores and positions: rules for ties are the selector's own.
    scores, positions = ((rng.permutation(n) / n).astype(np.float32) for _ in range(2))
    embeddings = rng.standard_normal((n, 8)).astype(np.float32)
    SELECTOR_CHECKS[check](_Choice(selector, k_max, scores, embeddings, positions, offsets))


def run_aggregator_check(
    check: str, module: Any, width: int, *, forward: Callable[..., Any] | None = None, attention: str | None = "auto",
    tolerance: float = 1e-5,
) -> None:  # fmt: skip
    """One of ``AGGREGATOR_CHECKS`` by name; arguments as for :func:`check_aggregator`."""
    import torch

    _known(check, AGGREGATOR_CHECKS)
    call = forward or module
    if attention == "auto":
        signature = inspect.signature(call.forward if isinstance(call, torch.nn.Module) else call)
        attention = "weights" if "return_att" in signature.parameters else None
    generator = torch.Generator().manual_seed(0)
    bags = [torch.randn(size, width, generator=generator) for size in SIZES]
    modes = {part: part.training for part in module.modules()} if isinstance(module, torch.nn.Module) else {}
    training = getattr(module, "training", False)
    if hasattr(module, "eval"):
        module.eval()
    try:
        AGGREGATOR_CHECKS[check](_Module(call, module, bags, tolerance, attention))
    finally:
        if training:
            module.train()
        for part, mode in modes.items():
            part.training = mode


def _known(check: str, checks: dict[str, Any]) -> None:
    if check not in checks:
        raise ValueError(f"check must be one of {', '.join(checks)}, got {check!r}")


def _budget(selector: Any, k_max: int | None) -> int:
    k_max = getattr(selector, "k_max", None) if k_max is None else k_max
    if k_max is None:
        raise TypeError(f"k_max must be given for what has none, got None; pass that of {selector!r}")
    if not 3 <= k_max <= 11:
        raise ValueError(f"k_max must be in 3..11 to be checked, got {k_max}; pass a selector of that budget")
    return k_max


def _run_all(checks: dict[str, Any], run: Callable[[str], None]) -> None:
    failed = []
    for check in checks:
        try:
            run(check)
        except AssertionError as error:
            failed.append(f"{check}: {error}")
        except Exception as error:
            failed.append(f"{check}: raised {type(error).__name__}: {error}")
    if failed:
        raise AssertionError(
            f"{len(failed)} of {len(checks)} checks failed\n" + "\n".join(f"- {line}" for line in failed)
        )
