"""Predict one pair, show its sites and a duplex, then a small FASTA x FASTA job. Run by ``make demo``."""

import subprocess
import sys
from pathlib import Path

import pairformer
from pairformer.data import read_fasta

HERE = Path(__file__).parent

mirna = next(read_fasta(HERE / "mirnas.fa"))
utr = next(read_fasta(HERE / "utrs.fa"))
prediction = pairformer.predict(mirna.sequence, utr.sequence, explain=True)

print(f"{mirna.name} on {utr.name} ({prediction.utr_length} nt)")
print(f"probability {prediction.probability:.3f} at even prior odds, {prediction.n_candidates} candidates, ", end="")
print(f"{len(prediction.sites)} selected, engine {prediction.engine}")
low, high = prediction.interval
print(f"log2 fold change {prediction.log2_fold_change:.2f}, 90 % of measured ones in {low:.2f} to {high:.2f}\n")
print("  sites with a seed match    window    seed  contribution  weight  selected as")
typed = [i for i, site in enumerate(prediction.sites) if site["seed_type"] != "none"]
for site in prediction.sites[typed]:
    window, seed = f"{site['start'] + 1}-{site['end']}", f"{site['seed_start'] + 1}-{site['seed_end']}"
    print(
        f"{site['seed_type']:>25} {window:>9} {seed:>7} {site['contribution']:>13.2f} {site['weight']:>7.3f}  "
        f"{site['reason']}"
    )
best = min(typed, key=lambda i: prediction.sites["contribution"][i])
print(f"\n{prediction.draw(best)}\n")

command = ["predict", str(HERE / "mirnas.fa"), str(HERE / "utrs.fa"), "--sites", "demo-sites.tsv"]
print(f"$ pairformer {' '.join(command)}", flush=True)
subprocess.run([sys.executable, "-m", "pairformer", *command], check=True)
print("the selected sites of all pairs are in demo-sites.tsv")
