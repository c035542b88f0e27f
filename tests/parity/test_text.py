"""Text encoders, tokenizers and whole prompts against transformers and diffusers."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, LTXPipeline, UniPCMultistepScheduler, WanPipeline
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from sentencepiece import SentencePieceProcessor
from transformers import T5EncoderModel, T5Tokenizer, UMT5EncoderModel

import jaxdiff
from jaxdiff.models.cogvideox.family import CogVideoX
from jaxdiff.models.ltx.family import LTX
from jaxdiff.models.text.prompt import TextEncoder
from jaxdiff.models.text.t5 import relative_buckets
from jaxdiff.models.text.tokenizer import Tokenizer, clean
from ports.folder import load_network, load_text_encoder
from tests.parity.text_reference import CASES, batch, encoder, run
from tests.parity.torch_models import wan_transformer
from tests.reference import WAN_SCHEDULER, relative_error
from tests.text import DISPUTED, prompts, vocabulary, write_spiece

pytestmark = pytest.mark.usefixtures("_cache")


@pytest.fixture
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXDIFF_CACHE", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------------------ encoders


@jax.jit
def embed(network, ids, mask=None):
    return network(ids, mask)


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(reference, its folder, ids, mask)."""
    kind, config = CASES[request.param]
    model = encoder(kind, **config)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder, *batch(model.config.vocab_size)


def test_embeddings_equal_transformers(case):
    model, folder, ids, mask = case
    network = load_network(folder)
    assert relative_error(embed(network, ids), run(model, ids, None)) <= 1e-5
    # Masked positions are compared too: nothing is read off them, yet they are computed alike.
    assert relative_error(embed(network, ids, mask), run(model, ids, mask)) <= 1e-5


def test_a_sharded_folder_gives_the_same_embeddings(case, tmp_path):
    model, folder, ids, mask = case
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    np.testing.assert_array_equal(embed(load_network(tmp_path), ids, mask), embed(load_network(folder), ids, mask))


def test_distances_fall_into_the_buckets_of_transformers(case):
    model, folder, _, _ = case
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.relative_attention_bias.weight.data = torch.arange(attention.relative_attention_num_buckets).float()[
        :, None
    ]
    attention.n_heads = 1
    reference = attention.compute_bias(1000, 1000)[0, 0].detach().numpy()
    np.testing.assert_array_equal(relative_buckets(1000, load_network(folder).config), reference)


@pytest.mark.parametrize("name", ["t5", "umt5"])
def test_bfloat16_is_as_close_to_float32_as_the_reference_in_bfloat16(name, tmp_path):
    kind, config = CASES[name]
    model = encoder(kind, **config, d_model=64, d_ff=256)
    model.save_pretrained(tmp_path)
    ids, mask = batch(model.config.vocab_size)
    truth = run(model, ids, mask)
    ours = embed(load_network(tmp_path, dtype=jnp.bfloat16), ids, mask)
    theirs = run(kind.from_pretrained(tmp_path, dtype=torch.bfloat16).eval(), ids, mask)

    def rms(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - truth) ** 2))

    assert 0 < rms(ours) <= 1.5 * rms(theirs)


# ---------------------------------------------------------------------------------------------------- tokenizers


@pytest.fixture(scope="module", params=["spiece.model", "tokenizer.json"])
def tokenizers(request, tmp_path_factory):
    """The reference's tokenizer and ours, of one folder."""
    folder = write_spiece(tmp_path_factory.mktemp("tokenizer") / "tokenizer")
    reference = T5Tokenizer.from_pretrained(folder)
    if request.param == "tokenizer.json":
        reference.save_pretrained(folder)
        (folder / "spiece.model").unlink()
        reference = T5Tokenizer.from_pretrained(folder)
    assert (folder / request.param).is_file()
    return reference, Tokenizer(folder)


@pytest.mark.parametrize("length", [1, 32, 226, 512])
def test_ids_of_a_thousand_prompts_equal_transformers(tokenizers, length):
    reference, ours = tokenizers
    texts = prompts(1000) + [text for text in DISPUTED if (ours.folder / "tokenizer.json").is_file()]
    theirs = reference(texts, padding="max_length", max_length=length, truncation=True, add_special_tokens=True)
    cut = 0
    for text, ids, mask in zip(texts, theirs.input_ids, theirs.attention_mask, strict=True):
        mine, real = ours(text, length)
        assert (mine.tolist(), real) == (ids, sum(mask)), text
        cut += real == length
    assert cut > 10  # over-long prompts are among them at every length


def test_prompts_are_cleaned_as_the_wan_pipeline_does_it():
    changed = 0
    for text in prompts(1000, seed=1):
        assert clean(text) == prompt_clean(text), text
        changed += clean(text) != text
    assert 100 < changed < 1000


@pytest.mark.parametrize("text", DISPUTED)
def test_a_spiece_model_follows_sentencepiece_where_its_conversion_by_transformers_does_not(text, tmp_path):
    folder = write_spiece(tmp_path / "tokenizer")
    ids, real = Tokenizer(folder)(text, 16)
    original = SentencePieceProcessor(model_file=str(folder / "spiece.model")).EncodeAsIds(text)
    assert ids[:real].tolist() == [*original, 1] != T5Tokenizer.from_pretrained(folder)(text).input_ids


# -------------------------------------------------------------------------------------------------- whole prompts


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    """A folder that diffusers wrote, text encoder and tokenizer included, and its pipeline."""
    folder = tmp_path_factory.mktemp("wan")
    made = write_spiece(folder / "made")
    text_encoder = encoder(UMT5EncoderModel, d_model=16, feed_forward_proj="gated-gelu", vocab_size=vocabulary(made))
    pipe = WanPipeline(
        tokenizer=T5Tokenizer.from_pretrained(made),
        text_encoder=text_encoder,
        transformer=wan_transformer(),
        vae=None,
        scheduler=UniPCMultistepScheduler.from_config(WAN_SCHEDULER),
    )
    pipe.save_pretrained(folder / "saved")
    index = json.loads((folder / "saved" / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    return folder / "saved", pipe


TEXTS = ["", "a red  ball &amp;amp; a cube\n", "cafÃ© 猫が跳ぶ <extra_id_0>", "the camera moves " * 300]


def test_conditions_on_a_prompt_as_the_wan_pipeline_does(wan):
    folder, pipe = wan
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference, negative = pipe.encode_prompt(TEXTS, ["rain"] * 4, max_sequence_length=512, device="cpu")
    pipeline = jaxdiff.load(folder)
    cond = pipeline.condition(TEXTS)
    assert cond.text.shape == reference.shape
    assert cond.text_mask is None
    assert relative_error(cond.text, reference) <= 1e-5
    np.testing.assert_array_equal(np.asarray(cond.text) == 0, reference.numpy() == 0)
    assert relative_error(pipeline.condition("rain").text, negative[:1]) <= 1e-5
    with torch.no_grad():
        short, _ = pipe.encode_prompt(TEXTS, max_sequence_length=20, device="cpu")
    assert relative_error(pipeline.condition(TEXTS, max_length=20).text, short) <= 1e-5
    latents = np.random.default_rng(0).standard_normal((4, 2, 4, 4, 4)).astype(np.float32)
    assert np.isfinite(pipeline.velocity(latents, 0.5, cond)).all()


@pytest.mark.parametrize(("kind", "family"), [(CogVideoXPipeline, CogVideoX()), (LTXPipeline, LTX())])
def test_embeds_a_prompt_as_the_pipelines_without_a_mask_do(kind, family, tmp_path):
    write_spiece(tmp_path / "tokenizer")
    model = encoder(T5EncoderModel, feed_forward_proj="gated-gelu", vocab_size=vocabulary(tmp_path / "tokenizer"))
    model.save_pretrained(tmp_path / "text_encoder")
    pipe = kind.__new__(kind)  # the method needs no more of a pipeline than these two
    pipe.text_encoder, pipe.tokenizer = model, T5Tokenizer.from_pretrained(tmp_path / "tokenizer")
    with torch.no_grad():
        reference = pipe._get_t5_prompt_embeds(TEXTS, device="cpu")
    reference, reference_mask = reference if isinstance(reference, tuple) else (reference, None)
    text, mask = TextEncoder(tmp_path, "float32").embed(TEXTS, family.text, load_text_encoder)
    assert text.shape == reference.shape
    assert relative_error(text, reference) <= 1e-5
    assert family.text.pass_mask == (reference_mask is not None)
    if reference_mask is not None:
        np.testing.assert_array_equal(mask, reference_mask)
