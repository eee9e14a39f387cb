from typing import Any

from numpy import dtype, float32, int32, int64, ndarray, uint8, uint32
from numpy.typing import NDArray

from pairformer.config import SelectorConfig

class PairBatch:
    def __init__(
        self,
        mirna: NDArray[uint8],
        mirna_offsets: NDArray[int64],
        utr: NDArray[uint8],
        utr_offsets: NDArray[int64],
        bag_mirna: NDArray[int32],
        bag_utr: NDArray[int32],
    ) -> None: ...
    @property
    def mirna(self) -> NDArray[uint8]: ...
    @property
    def mirna_offsets(self) -> NDArray[int64]: ...
    @property
    def utr(self) -> NDArray[uint8]: ...
    @property
    def utr_offsets(self) -> NDArray[int64]: ...
    @property
    def bag_mirna(self) -> NDArray[int32]: ...
    @property
    def bag_utr(self) -> NDArray[int32]: ...

def encode_texts(texts: list[str], threads: int) -> tuple[NDArray[uint8], NDArray[int64]]: ...
def scan_variants() -> list[str]: ...
def scan(
    batch: PairBatch, esa_min: int, threads: int, variant: str
) -> tuple[NDArray[int64], NDArray[int32], NDArray[uint8], NDArray[float32], NDArray[uint32], NDArray[int64]]: ...
def encode(
    batch: PairBatch, bag: NDArray[int64], start: NDArray[int32], alignment: NDArray[uint32], threads: int
) -> NDArray[uint8]: ...
def aligned(
    batch: PairBatch, bag: NDArray[int64], start: NDArray[int32], alignment: NDArray[uint32]
) -> ndarray[Any, dtype[Any]]: ...
def select(
    cheap_logit: ndarray,
    cheap_embedding: ndarray | None,
    position: ndarray | None,
    offsets: ndarray,
    config: SelectorConfig,
    threads: int = 0,
) -> tuple[NDArray[int64], NDArray[int64], NDArray[uint8]]: ...
def simhash_keys(embedding: ndarray, rng_seed: int, threads: int = 0) -> NDArray[uint32]: ...
def simhash_dims(rng_seed: int, width: int) -> NDArray[int64]: ...
