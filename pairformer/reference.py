"""Plain NumPy twins of the native functions: the specification that tests compare them with."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np

from pairformer.config import SelectorConfig

_LETTERS = str.maketrans("acgutT", "ACGUUU")
_PAIRS = {("A", "U"), ("U", "A"), ("C", "G"), ("G", "C"), ("G", "U"), ("U", "G")}


def clean(text: str) -> str:
    """Upper case, T as U, anything outside ACGU as N."""
    return "".join(c if c in "ACGU" else "N" for c in text.translate(_LETTERS))


def esa_align(mirna: str, window: str) -> tuple[int, str, str]:
    """Score and gapped strings of one window, as TargetNet's aligner yields them.

    Global alignment of the miRNA's first ten letters with letters 5-14 of the reversed window: pairs
    A-U, C-G, G-U score 1, everything else 0. From the last cell the walk skips a window letter if that
    costs nothing and the last step did not skip a miRNA letter, else takes both letters if that explains
    the score, else skips a miRNA letter.

    Args:
        mirna: 1-35 letters ACGU, 5'->3'.
        window: 40 letters ACGU, 5'->3'.

    Returns:
        score 0-10, gapped miRNA (5'->3'), gapped seed part (3'->5').

    Source: Biopython pairwise2 globaldx with free gaps, first alignment.
    """
    top, bottom = mirna[:10], window[::-1][5:15]
    n = len(top)
    s = np.zeros((n + 1, 11), int)
    for i in range(1, n + 1):
        for j in range(1, 11):
            pair = (top[i - 1], bottom[j - 1]) in _PAIRS
            s[i, j] = max(s[i - 1, j - 1] + pair, s[i - 1, j], s[i, j - 1])
    i, j, skipped_mirna, columns = n, 10, False, []
    while i and j:
        pair = (top[i - 1], bottom[j - 1]) in _PAIRS
        if not skipped_mirna and s[i, j - 1] == s[i, j]:
            j -= 1
            columns.append(("-", bottom[j]))
        elif s[i - 1, j - 1] + pair == s[i, j]:
            i, j, skipped_mirna = i - 1, j - 1, False
            columns.append((top[i], bottom[j]))
        else:
            i, skipped_mirna = i - 1, True
            columns.append((top[i], "-"))
    columns += [("-", bottom[k]) for k in reversed(range(j))] + [(top[k], "-") for k in reversed(range(i))]
    return int(s[n, 10]), "".join(c[0] for c in columns[::-1]), "".join(c[1] for c in columns[::-1])


def scan(mirna: str, utr: str, esa_min: int = 6) -> list[tuple[int, int, np.float32, str, str]]:
    """Candidates of one pair: (start, esa_score, position, gapped miRNA, gapped seed part), ascending start."""
    mirna, utr = clean(mirna), clean(utr)
    rows = []
    for start in range(len(utr) - 39):
        window = utr[start : start + 40]
        if "N" in window:
            continue
        score, top, bottom = esa_align(mirna, window)
        if score >= esa_min:
            rows.append((start, score, np.float32((start + 19.5) / (len(utr) - 1)), top, bottom))
    return rows


def encode(mirna: str, window: str) -> np.ndarray:
    """(10, 50) uint8 one-hot of one window: channels miRNA A C G U gap, window A C G U gap."""
    _, top, bottom = esa_align(mirna, window)
    reverse = window[::-1]
    rows = (" " * 5 + top + mirna[10:], reverse[:5] + bottom + reverse[15:])
    tensor = np.zeros((10, 50), np.uint8)
    for channel, text in zip((0, 5), rows, strict=True):
        for column, letter in enumerate(text[:50]):
            if letter != " ":
                tensor[channel + "ACGU-".index(letter), column] = 1
    return tensor


def simhash_dims(rng_seed: int, width: int) -> np.ndarray:
    """First min(32, width) entries of a seeded permutation of 0 .. width - 1.

    Fisher-Yates over the raw 32-bit outputs of MT19937, seeded as C++ and C do.
    """
    generator = np.random.MT19937()
    generator._legacy_seeding(rng_seed)
    order = list(range(width))
    for i in range(width):
        j = i + int(generator.random_raw()) % (width - i)
        order[i], order[j] = order[j], order[i]
    return np.array(order[:32], np.int64)


def simhash_keys(embedding: np.ndarray, rng_seed: int) -> np.ndarray:
    """(N, D) float32 -> (N,) uint32: bit t is 1 where embedding[:, dims[t]] > 0.

    Source: PAIR-Former App. D, step C.
    """
    dims = simhash_dims(rng_seed, embedding.shape[1])
    bits = (embedding[:, dims] > 0).astype(np.uint32)
    return (bits << np.arange(len(dims), dtype=np.uint32)).sum(axis=1, dtype=np.uint32)


def select(
    cheap_logit: np.ndarray,
    cheap_embedding: np.ndarray | None,
    position: np.ndarray | None,
    offsets: np.ndarray,
    config: SelectorConfig,
    keep: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """STSelector over a ragged batch: (rows, offsets, reason) as ``STSelector.select`` has them.

    Source: PAIR-Former App. D, steps A-E; quotas by largest remainder.
    """
    if position is None:
        position = np.zeros_like(cheap_logit)
    keys = cheap_embedding
    if keys is not None and keys.ndim == 2:
        keys = simhash_keys(keys, config.rng_seed)
    if keys is None:
        keys = np.zeros(len(cheap_logit), np.uint32)
    rows: list[int] = []
    reasons: list[int] = []
    ends = [0]
    for first, last in pairwise(offsets):
        bag = slice(first, last)
        kept = np.zeros(last - first, np.uint8) if keep is None else keep[bag]
        chosen = _select_bag(cheap_logit[bag], keys[bag], position[bag], config, kept)
        for row in sorted(chosen):
            rows.append(int(first) + row)
            reasons.append(chosen[row])
        ends.append(len(rows))
    return np.array(rows, np.int64), np.array(ends, np.int64), np.array(reasons, np.uint8)


def _select_bag(
    logit: np.ndarray, keys: np.ndarray, position: np.ndarray, config: SelectorConfig, keep: np.ndarray
) -> dict[int, int]:
    """Row in the bag -> reason."""
    n = len(logit)
    k = min(config.k_max, n)
    if n <= k:
        return dict.fromkeys(range(n), 0)
    order = [int(row) for row in np.lexsort((np.arange(n), position, -logit))]

    # Rows to keep come first; the others share the places left.
    marked = sorted((row for row in order if keep[row]), key=lambda row: -int(keep[row]))
    kept = dict.fromkeys(marked[:k], 3)
    order = [row for row in order if row not in kept]
    k -= len(kept)

    # A. The best logits.
    k1 = k if config.variant == "S0" else math.floor(config.rho * k)
    chosen = dict.fromkeys(order[:k1], 0)
    if k1 == k:
        return kept | chosen

    # B. The best of each position bin among the others.
    pool = min(max(config.pool_factor * k, config.pool_min), config.pool_max)
    pool_class = sum(pool > step for step in config.pool_steps)
    n_bins, bin_size, hash_bits = (
        values[pool_class]  # type: ignore[index]
        for values in (config.n_bins, config.bin_size, config.hash_bits)
    )
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    for row in order[k1:]:
        p = float(position[row])
        bins[n_bins - 1 if p >= 1 else math.floor(n_bins * max(p, 0.0))].append(row)
    bins = [rows[:bin_size] for rows in bins]

    # C. At most key_cap of each bin and hash key.
    if config.variant == "S2":
        bins = [_drop_duplicates(rows, keys & np.uint32(2**hash_bits - 1), config.key_cap) for rows in bins]

    # D. Quotas.
    weights = _bin_weights([[float(logit[row]) for row in rows] for rows in bins], config)
    quotas = _quotas(weights, [len(rows) for rows in bins], k - k1)
    for rows, quota in zip(bins, quotas, strict=True):
        chosen.update(dict.fromkeys(rows[:quota], 1))

    # E. Fill with the best logits.
    left = [row for row in order if row not in chosen]
    chosen.update(dict.fromkeys(left[: k - len(chosen)], 2))
    return kept | chosen


def _drop_duplicates(rows: list[int], keys: np.ndarray, cap: int) -> list[int]:
    seen: Counter[int] = Counter()
    kept = []
    for row in rows:
        seen[int(keys[row])] += 1
        if seen[int(keys[row])] <= cap:
            kept.append(row)
    return kept


def _bin_weights(bins: list[list[float]], config: SelectorConfig) -> list[float]:
    """Sum of exp(score / tau_w) over the top_t best of each bin; bins hold falling logits.

    Sums run one by one in the order of the bins: equal to the last bit to the C++ ones.
    """
    if config.score == "sigmoid":
        bins = [[1 / (1 + math.exp(-x)) for x in scores] for scores in bins]
    mean, scale = 0.0, 1.0
    if config.z_normalize:
        flat = [x for scores in bins for x in scores]
        mean = _sum(flat) / len(flat)
        scale = math.sqrt(_sum([(x - mean) * (x - mean) for x in flat]) / len(flat)) + config.z_eps
    clip = config.exponent_clip

    def weight(score: float) -> float:
        return math.exp(min(max((score - mean) / scale / config.tau_w, -clip), clip))

    return [_sum([weight(x) for x in scores[: config.top_t]]) for scores in bins]


def _sum(values: list[float]) -> float:
    """Plain sum: the built-in one compensates from Python 3.12 on."""
    total = 0.0
    for value in values:
        total += value
    return total


def _quotas(weights: list[float], survivors: list[int], places: int) -> list[int]:
    """Places of each bin: one for every non-empty bin (or the heaviest), the rest by largest remainder."""
    open_bins = [b for b, count in enumerate(survivors) if count > 0]
    open_bins = sorted(sorted(open_bins, key=lambda b: (-weights[b], b))[:places])
    quotas = [int(b in open_bins) for b in range(len(weights))]
    left = places - sum(quotas)
    while left > 0:
        open_bins = [b for b in open_bins if quotas[b] < survivors[b]]
        if not open_bins:
            break
        total = _sum([weights[b] for b in open_bins])
        exact = {b: left * weights[b] / total for b in open_bins}
        given = {b: math.floor(exact[b]) for b in open_bins}
        by_remainder = sorted(open_bins, key=lambda b: (given[b] - exact[b], -weights[b], b))
        for b in by_remainder[: left - sum(given.values())]:
            given[b] += 1
        for b in open_bins:
            places_taken = min(given[b], survivors[b] - quotas[b])
            quotas[b] += places_taken
            left -= places_taken
    return quotas
