"""Captured activations and encoded clips on disk: written while a model runs, resumable by clip, readable by any zarr 3
reader.

`ActivationStore` is the whole surface for activations, `LatentWriter` and `LatentStore` for clips that went through a VAE;
the modules beside them hold one part each: `layout` (what an array
looks like on disk), `assembly` (slots arriving in any order become chunks), `writer` (threads that fail
loudly), `index` (which clips are committed), `sink` (the callback inside a compiled program).
"""

from jaxdiff.store.latents import LatentBatch, LatentHeader, LatentStore, LatentWriter
from jaxdiff.store.sink import StoreSink
from jaxdiff.store.store import ActivationStore

__all__ = ["ActivationStore", "LatentBatch", "LatentHeader", "LatentStore", "LatentWriter", "StoreSink"]
