"""Weights in and out: published checkpoints become this project's parameter trees, and back. No torch.

`safetensors_reader` maps checkpoint files into memory, `table` says which tensor goes where and `filling` moves them, one
module a network holds its table, and `families` says which there are. `folder` opens a checkpoint and `writer` writes one
in the diffusers layout; `encoders` opens and writes video encoders; `original` knows the layouts of the original
repositories, `lora` adds a LoRA, `stored` holds converted weights. `convert`, `inspect` and `unpickle` are commands.
"""
