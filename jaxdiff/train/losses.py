"""Losses of the two networks that jaxdiff trains: the video autoencoder and the flow's velocity field."""

import jax
import jax.numpy as jnp

from jaxdiff.models.network import Network, Remat


def flow_matching_loss(
    transformer: Network,
    latents: jax.Array,
    text: jax.Array,
    key: jax.Array,
    *,
    timestep_scale: float = 1000.0,
    logit_mean: float = 0.5,
    logit_std: float = 1.0,
    prompt_dropout: float = 0.5,
    remat: Remat = "none",
) -> jax.Array:
    """Rectified-flow regression ``|| v(x_sigma, sigma) - (noise - x0) ||^2``, mean over all elements.

    ``x_sigma = (1 - sigma) x0 + sigma noise`` with ``sigma = sigmoid(logit_mean + logit_std n)``, n standard normal
    (Esser et al. 2024, arXiv 2403.03206, eq. 13 and section 3.1).

    Parameters
    ----------
    latents : [B, T', H', W', C] float32, normalised
    text : [B, N, text_dim]; replaced by zeros (the empty prompt) with probability `prompt_dropout` per clip
    key : `jax.random` key

    Returns
    -------
    scalar float32
    """
    sigma_key, noise_key, drop_key = jax.random.split(key, 3)
    batch = latents.shape[0]
    sigma = jax.nn.sigmoid(logit_mean + logit_std * jax.random.normal(sigma_key, (batch,)))
    noise = jax.random.normal(noise_key, latents.shape)
    mix = sigma[:, None, None, None, None]
    keep = jax.random.bernoulli(drop_key, 1.0 - prompt_dropout, (batch, 1, 1))
    x = (1.0 - mix) * latents + mix * noise
    velocity, _ = transformer(x, timestep_scale * sigma, text * keep, remat=remat)
    return jnp.mean(jnp.square(velocity.astype(jnp.float32) - (noise - latents)))


def autoencoder_loss(
    vae: Network, video: jax.Array, key: jax.Array, *, square_weight: float = 2.0, kl_weight: float = 1e-6
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean absolute plus squared reconstruction error, and a small KL to the standard normal (Kingma & Welling 2014,
    eq. 10). The squared term makes small bright things count, which the median that L1 seeks passes over.

    Parameters
    ----------
    video : [B, T, H, W, 3] float32 in [-1, 1]

    Returns
    -------
    loss : scalar float32
    metrics : "l1", "kl" (nats per latent element) and "psnr" (dB, peak-to-peak 2)
    """
    module = vae.bind()
    # All frames in one chunk: training clips are short, and the gradient of a scan over chunks is slow on CPUs.
    whole = video.shape[1]
    mean, log_variance = jnp.split(module.encode(video, chunk=whole).astype(jnp.float32), 2, axis=-1)
    log_variance = jnp.clip(log_variance, -30.0, 20.0)
    sample = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
    error = module.decode(sample, clamp=False, chunk=whole).astype(jnp.float32) - video
    l1, square = jnp.mean(jnp.abs(error)), jnp.mean(jnp.square(error))
    kl = 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
    psnr = 10.0 * jnp.log10(4.0 / square)
    return l1 + square_weight * square + kl_weight * kl, {"l1": l1, "kl": kl, "psnr": psnr}
