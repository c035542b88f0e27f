"""Text: prompts to token ids to the embeddings that transformers are conditioned on."""

from jaxdiff.models.text.prompt import TextConvention, TextEncoder
from jaxdiff.models.text.t5 import T5Config, T5Encoder, UMT5Config, UMT5Encoder
from jaxdiff.models.text.tokenizer import Tokenizer, clean

__all__ = [
    "T5Config",
    "T5Encoder",
    "TextConvention",
    "TextEncoder",
    "Tokenizer",
    "UMT5Config",
    "UMT5Encoder",
    "clean",
]
