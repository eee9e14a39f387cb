"""What the native code refuses: arrays of a model, candidates, batches and rows that do not fit together."""

import dataclasses

import numpy as np
import pytest
from test_native import CONFIGS, arrays_of, native

import pairformer
from pairformer import _core, testing
from pairformer.engines import NativeEngine

LET7 = "UGAGGUAGUAGGUUGUAUAGUU"


@pytest.fixture
def candidates(rng):
    return pairformer.scan([testing.random_rna(rng, 22)] * 3, [testing.random_rna(rng, n) for n in (1200, 30, 400)])


def test_wrong_arrays():
    config, arrays = CONFIGS["narrow"], arrays_of(CONFIGS["narrow"])
    name = "expensive.stem.weight"
    wrong = [
        ({k: v for k, v in arrays.items() if k != name}, "must hold expensive.stem.weight \\(3, 10, 101\\).*no such"),
        (arrays | {name: arrays[name][:2].copy()}, "got \\(2, 10, 101\\)"),
        (arrays | {"other.weight": arrays[name]}, "got other.weight \\(3, 10, 101\\) too"),
        (arrays | {name: arrays[name][:, ::-1]}, "expensive.stem.weight must be C-contiguous"),
    ]
    for bad, message in wrong:
        with pytest.raises(ValueError, match=message):
            NativeEngine(config, bad, {})
    with pytest.raises(TypeError, match=r"expensive.stem.weight must be float32, got float64"):
        NativeEngine(config, arrays | {name: arrays[name].astype(float)}, {})
    with pytest.raises(TypeError, match=r"expensive.stem.weight must be a NumPy array, got list"):
        NativeEngine(config, arrays | {name: [np.float32(1)]}, {})
    with pytest.raises(ValueError, match=r"variant must be one of auto, .*portable on this processor, got mmx"):
        NativeEngine(config, arrays, {}, "mmx")


def test_wrong_candidates(candidates):
    model = native(CONFIGS["narrow"]).model

    def broken(**fields):
        return dataclasses.replace(candidates, **fields)

    start = candidates.start.copy()
    start[700] = 2_000_000_000
    alignment = candidates.alignment.copy()
    alignment[3] ^= 1
    for bad, message in [
        (broken(start=start), "start must name a window of 40 letters ACGU, got 2000000000"),
        (broken(alignment=alignment), "alignment must pair as many"),
        (broken(start=candidates.start[:-1]), "offsets must end at"),
        *[(broken(**{name: getattr(candidates, name)[:-1]}), f"{name} must have {len(start)} rows")
          for name in ("esa_score", "position", "alignment")],
        (broken(offsets=np.r_[0, candidates.offsets[2:]]), "offsets must have one entry more"),
        (broken(esa_score=np.repeat(candidates.esa_score, 2)[::2]), "esa_score must be C-contiguous"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.cheap_scan(bad)
    with pytest.raises(TypeError, match="start must be int32, got int64"):
        model.cheap_scan(broken(start=candidates.start.astype(np.int64)))
    for row in (-1, len(start)):
        with pytest.raises(ValueError, match=rf"rows must be in .0, {len(start)}\), got {row}"):
            model.encode(candidates, np.array([row]))
    for bag, row in ((1, 0), (0, candidates.offsets[1])):
        with pytest.raises(ValueError, match=f"rows of bag {bag} must be its own, got {row}"):
            model.aggregate(candidates, np.array([row]), (np.arange(len(candidates) + 1) > bag).astype(np.int64))
    with pytest.raises(ValueError, match="row_offsets must have one entry more"):
        model.aggregate(candidates, np.array([0]), np.array([0, 1]))


def test_windows_outside_their_sequence_are_refused_by_additive_heads(candidates):
    model = native(CONFIGS["additive"]).model
    broken = dataclasses.replace(candidates, start=candidates.start + 2_000_000_000)
    for call in (
        lambda: model.aggregate(broken, np.array([0]), np.array([0, 1, 1, 1])),
        lambda: model.sum_sites(broken, 5),
    ):
        with pytest.raises(ValueError, match="start must name a window"):
            call()


def test_seed_windows_need_every_row_and_a_type(candidates):
    n = len(candidates.start)
    for rows, least, message in [
        (n - 1, 1, f"cheap_logit must have {n} rows"),
        (n, 6, r"least must be in 0\.\.5, got 6"),
        (n, -1, r"least must be in 0\.\.5, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            _core.seed_windows(candidates, np.zeros(rows, np.float32), least)


def test_arrays_of_other_lengths_are_refused():
    batch = pairformer.scan([LET7] * 2, "ACGU" * 30).batch
    bag, start, bits = np.array([0, 1]), np.zeros(2, np.int32), np.zeros(2, np.uint32)
    for call, message in [
        (lambda: _core.encode(batch, bag, start, bits[:1], 1), "one entry per row"),
        (lambda: _core.encode(batch, bag, start[:1], bits, 1), "one entry per row"),
        (lambda: _core.site_features(batch, bag, start[:1], 1), "one entry per bag"),
        (lambda: _core.duplex_energy(batch, bag, start + 81, 1), "start must name a window"),
        (lambda: _core.site_context(batch, np.array([0, 2]), start), "one entry more than there are bags"),
        (lambda: _core.site_context(batch, np.array([0, 1, 2]), start - 1), "start must name a window"),
        (lambda: _core.bag_features(batch, bag[:1]), "must have 2 rows"),
        (lambda: _core.bag_features(batch, bag - 1), "must be 0 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_batch_holds_numbers_of_its_sequences():
    zero = np.zeros(1, np.int32)
    batch = _core.PairBatch([LET7], ["ACGU"], zero, zero, 1)
    zero[0] = 9
    assert batch.bag_mirna.tolist() == batch.bag_utr.tolist() == [0]
    for mirna, bag_mirna, bag_utr, message in [
        (LET7, [1], [0], r"bag_mirna must be in \[0, 1\), got 1"),
        (LET7, [0], [-1], r"bag_utr must be in \[0, 1\), got -1"),
        (LET7, [0, 0], [0], "bag_utr must have one entry per bag"),
        ("A" * 36, [0], [0], "mirna must have at most 35 letters"),
        ("ACGN", [0], [0], "mirna must have letters ACGU"),
    ]:
        with pytest.raises(ValueError, match=message):
            _core.PairBatch([mirna], ["ACGU"], np.array(bag_mirna, np.int32), np.array(bag_utr, np.int32), 1)
