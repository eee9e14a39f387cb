"""Shared fixtures."""

import gzip
import importlib.util
import os
import random

import pytest

from pairformer import testing
from pairformer.data import DATA_VARIABLE, data_folder

if importlib.util.find_spec("torch") and importlib.util.find_spec("triton"):
    import torch

    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products
    else:
        os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported


@pytest.fixture
def rng():
    return random.Random(2020)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Directory of a small model of the paper's form with random weights."""
    return _saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def additive_model(tmp_path_factory):
    """Directory of a small model of the default's form, which predicts fold changes, with random weights."""
    place = tmp_path_factory.mktemp("additive_model")
    calibration = {"effect_scale": 2.0, "effect_interval": (-0.5, 0.25), "effect_widening": (1.0, 0.5)}
    token = ("embedding", "logit", "esa", "position", "site", "context", "duplex")
    heads = {"additive": 8, "members": 2, "length_gate": 1.05}
    return _saved(place, heads, token=token, keep_seed="offset 6mer", **calibration)


def _saved(directory, aggregator=None, **config):
    torch = pytest.importorskip("torch")

    from pairformer.config import AggregatorConfig, CheapConfig, ExpensiveConfig, ModelConfig, SelectorConfig
    from pairformer.models import PairFormer

    torch.manual_seed(2020)
    config = ModelConfig(
        ExpensiveConfig(channels=(8, 8, 8), se_reduction=2, pooled_length=4),
        CheapConfig(channels=(8, 8), width=32, hidden=8),
        SelectorConfig(k_max=16),
        AggregatorConfig(width=16, layers=2, hidden=16, **(aggregator or {})),
        logit_scale=0.5,
        **config,
    )
    model = PairFormer(config)
    for head in model.additives:
        torch.nn.init.constant_(head.bag[-1].bias, 1.0)  # repression, whatever the other weights say
    model.save(directory)
    return directory


@pytest.fixture(scope="session")
def data():
    """The folder of real data, which is not part of the repository."""
    try:
        return data_folder()
    except FileNotFoundError:
        pytest.skip(f"{DATA_VARIABLE} names no folder of data")


@pytest.fixture
def unwritten_is_nan():
    """Tensors made by torch.empty hold NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def command(monkeypatch):
    """Runs a command as typed -> exit code."""
    from pairformer import cli

    def run(*words):
        monkeypatch.setattr("sys.argv", ["pairformer", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
        return 0

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A data folder of 60 UTRs and 12 miRNAs in which a perfect seed site makes the label."""
    rng = random.Random(1)
    complement = str.maketrans("ACGU", "UGCA")
    path = tmp_path_factory.mktemp("data")
    mirnas = [testing.random_rna(rng, 22) for _ in range(12)]
    cts = ["mirna_id\tmirna_seq\tmrna_id\tmrna_seq\tlabel\tsplit\tin_miraw_pair"]
    pairs = ["mirna_id\tmirna_seq\tutr_id\tgene_symbol\tutr_length\tlabel\tn_sets\tsets\tgene_fold"]
    utrs = ["utr_id\tgene_symbol\tensembl_gene\tsymbol_from\tsource\tlength\tutr_seq"]
    effects = ["experiment\tgene_id\tlog2fc\tfdr"]
    for i in range(600):
        mirna, label = rng.randrange(12), i % 2
        window = testing.random_rna(rng, 40)
        if label:
            window = window[:26] + mirnas[mirna][:9].translate(complement)[::-1] + window[35:]
        cts.append(f"m{mirna}\t{mirnas[mirna]}\tENSG{i % 60}\t{window}\t{label}\ttrain\t{'1' if i < 3 else ''}")
    cts.append(f"m0\t{mirnas[0]}\tENSG1\t{'A' * 39}\t1\ttrain\t")
    copied = []  # windows whose ids hide where they stand: in two genes, and in a gene that is not theirs
    for g in range(60):
        utr = testing.random_rna(rng, 20 if g == 0 else 150)
        for mirna in rng.sample(range(12), 4):
            label = rng.randrange(2)
            if label and g:
                at = rng.randrange(30, 140)
                utr = utr[:at] + mirnas[mirna][:9].translate(complement)[::-1] + utr[at + 9 :]
            sets = str(rng.randrange(10)) if label else "0,1,2,3,4,5,6,7,8,9"  # as published: negatives in all files
            pairs.append(f"m{mirna}\t{mirnas[mirna]}\tU{g}\tG{g}\t{len(utr)}\t{label}\t1\t{sets}\t{g % 5}")
        utrs.append(f"U{g}\tG{g}\tENSG{g}\ttable\tmade\t{len(utr)}\t{utr}")
        copied.append(f"m1\t{mirnas[g % 12]}\tENSG{g},ENSG{(g + 1) % 60}\t{testing.random_rna(rng, 40)}\t0\ttrain\t")
        copied.append(f"m1\t{mirnas[g % 12]}\tENSGX\t{utr[5:45]}\t0\ttrain\t" if g else copied[0])
        effects += [f"E{e}\tU{g}\t{rng.gauss(0, 1):.3f}\t1" for e in range(9)]
    kinds = ["OE", "KO", *["OE"] * 7]
    experiments = [
        f"E{e}\t{mirnas[e]}\t{kinds[e]}\t{'GSE124530' if e < 8 else 'GSE1'}\t{'no seed signal' if e == 7 else 'good'}"
        for e in range(9)
    ]
    clash = ["mirna_seq\tmrna_id\tmrna_seq\tlabel\tsplit"]
    for i in range(60):
        window, site = testing.random_rna(rng, 50), mirnas[i % 12][:9].translate(complement)[::-1]
        window = window[:30] + site + window[39:] if i % 2 else window
        clash.append(f"{mirnas[i % 12 // 2]}\t\t{window}\t{i % 2}\t{'train' if i < 50 else 'test'}")
    gene_utr = [f"U{g}\tG{g}\tU{g}" for g in range(60)]
    tables = {
        "miraw_cts/cts.tsv.gz": cts + copied,
        "miraw_pairs/pairs.tsv": pairs,
        "utr3_human/utr3_human.tsv.gz": utrs,
        "lfc_funmirbench/lfc.tsv.gz": effects,
        "lfc_funmirbench/experiments.tsv": ["experiment\tmirna_seq\ttype\tgeo\tquality", *experiments],
        "lfc_funmirbench/gene_utr.tsv": ["gene_id\tgene_symbol\tutr_id", *gene_utr],
        "mirbench_hejret2023/sites.tsv": clash,
        "clash_hejret2023_original/sites.tsv.gz": [line.replace("\ttrain", "\ttrain_1_10") for line in clash],
    }
    for name, lines in tables.items():
        (path / name).parent.mkdir(exist_ok=True)
        text = ("\n".join(lines) + "\n").encode()
        (path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    return path
