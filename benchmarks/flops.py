"""Operations of a program, counted in its jaxpr: `products` of `jaxdiff.scaling.operations`, the project's one counter."""

from jaxdiff.scaling.operations import products

__all__ = ["products"]
