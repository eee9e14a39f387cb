"""What a model makes of random UTRs, and of one perfect site put into them: python examples/planted_site.py [MODEL].

The share a miRNA's name has in a probability, beside the share a site has: run it before you trust either.
"""

import random
import sys

import numpy as np

import pairformer
from pairformer.testing import random_rna

MIRNAS = {
    "let-7a-5p": "UGAGGUAGUAGGUUGUAUAGUU",
    "miR-21-5p": "UAGCUUAUCAGACUGAUGUUGA",
    "miR-1-3p": "UGGAAUGUAAAGAAGUAUGUAU",
    "miR-941": "CACCCGGCUGUGUGCACAUGUGC",
    "miR-99a-5p": "AACCCGUAGAUCCGAUCUUGUG",
}
COMPLEMENT = str.maketrans("ACGU", "UGCA")

rng = random.Random(5)
model = sys.argv[1] if len(sys.argv) > 1 else "default"
utrs = [random_rna(rng, 1500) for _ in range(40)]
print("miRNA        probability of 40 random UTRs    logit change by a planted 8mer")
print("             10 %    50 %    90 %             mean     sd     raised in")
for name, mirna in MIRNAS.items():
    plain = pairformer.predict(mirna, utrs, model=model)
    site = mirna[1:8].translate(COMPLEMENT)[::-1] + "A"
    planted = pairformer.predict(mirna, [utr[:700] + site + utr[708:] for utr in utrs], model=model)
    change = planted.logit - plain.logit
    low, middle, high = np.percentile(plain.probability, [10, 50, 90])
    print(f"{name:<12} {low:.3f}   {middle:.3f}   {high:.3f}", end="")
    print(f"{change.mean():>17.3f}  {change.std():.3f} {(change > 0).mean():>9.0%}")
