"""Weights in and out: published checkpoint folders become this project's parameter trees, and back. No torch.

`safetensors_reader` maps checkpoint files into memory, `table` says which tensor goes where and moves them,
`wan` and `wan_vae` are tables, `folder` reads a folder in the diffusers layout and `writer` writes one.
"""
