"""How the loss of each family of networks falls with their size: trained small on moving shapes.

All networks see the same examples in the same order, take their steps in turns, so that whatever
slows the machine down slows all of them, and are scored by their EMA on captions never shown. They
take equally many steps, or as many as fit into equal seconds. On one device, without tensorflow.
"""

import copy
import functools
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from snapvideo_jax import build
from snapvideo_jax.build import Config
from snapvideo_jax.denoiser import Denoiser, Params
from snapvideo_jax.diffusion import edm, sigmas
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.planner import cost
from snapvideo_jax.studies.learner import Batch, Learner, held_out, training_batches

Key = tuple[str, int]  # family and size of a network


class Size(NamedTuple):
    """Networks with as many parameters, one of each family.

    fit: channels of the latents, half those of the patches. unet: multipliers of 32 channels. dit,
    dit_factorised: channels and blocks.
    """

    fit: int
    unet: tuple[int, ...]
    dit: tuple[int, int]
    dit_factorised: tuple[int, int]


# A U-Net's channels are multiples of 32, so small ones have fewer and narrower levels. All have as
# many parameters as the U-Net of their number, to a tenth.
SIZES = {
    1: Size(48, (1, 1), (64, 5), (64, 4)),
    2: Size(80, (1, 1, 2), (128, 4), (128, 3)),
    3: Size(128, (1, 2, 3), (176, 5), (176, 4)),
    4: Size(144, (1, 2, 4), (208, 5), (208, 4)),
}
CUT = dict(patch=4, group=(4, 2, 2), latents=32)  # 4 groups of 4 frames x 2 x 2 patches
FAMILIES = Size._fields
LEARNING_RATES = {"fit": 3e-3, "unet": 1e-3, "dit": 1e-3, "dit_factorised": 1e-3}
EQUAL = ("steps", "seconds")
TIMED = 4  # steps that say how long one takes
BATCH = 8
WARMUP = 15  # it takes 1/15 of the steps, as in configs/shapes.py
HELD_OUT = 128  # videos
BINS = 6  # of ln sigma, equally likely in training


def resize(config: Config, family: str, size: int, steps: int) -> Config:
    """Returns a copy of `config` with a network of `family` and `size`, for a run of `steps`."""
    changed, sizes = copy.deepcopy(config), SIZES[size]
    changed.model.update(name=family.partition("_")[0], conditioning_channels=64)
    changed.model.fit.update(
        patch_channels=2 * sizes.fit,
        latent_channels=sizes.fit,
        patch_head_channels=16,
        latent_head_channels=16,
        **CUT,
    )
    changed.model.unet.update(
        channels=32,
        multipliers=sizes.unet,
        residual_blocks=1,
        head_channels=32,
        attention_levels=(2 ** (len(sizes.unet) - 1),),
    )
    factorised = family == "dit_factorised"
    channels, blocks = sizes.dit_factorised if factorised else sizes.dit
    changed.model.dit.update(
        patch=CUT["patch"],
        channels=channels,
        blocks=blocks,
        head_channels=16,
        factorised=factorised,
    )
    if family != "fit":
        changed.diffusion.self_conditioning = 0.0
    rate, warmup = LEARNING_RATES[family], max(1, steps // WARMUP)
    changed.optimizer.update(learning_rate=rate, warmup_steps=warmup)
    changed.training.update(steps=steps, batch_size=BATCH)
    return changed


def check(families: Sequence[str], sizes: Sequence[int], steps: int) -> None:
    """Raises ConfigError for what is unknown or named two times, and for too few steps."""
    for flag, values, choice in (("networks", families, FAMILIES), ("sizes", sizes, SIZES)):
        if not set(values) <= set(choice) or len(set(values)) < len(values) or not values:
            text = ",".join(map(str, choice))
            raise ConfigError(
                f"--{flag}={','.join(map(str, values))}: choose from {text}, each once"
            )
    if steps < 2:
        raise ConfigError(f"--steps={steps}: at least 2, for the first one warms up")


def run(
    config: Config,
    *,
    families: Sequence[str],
    sizes: Sequence[int],
    steps: int,
    equal: str,
    text: build.Text,
    say: Callable[[str], None],
    progress: Callable[[str], Callable[[int, int], None]],
) -> dict[str, Any]:
    """Trains all networks; returns rows and what they have in common, as scaling.json has them.

    steps: of each, or of the slowest where `equal` is "seconds". progress: things -> (how many are
    done, of how many).
    """
    keys = [(family, size) for family in families for size in sizes]

    def learner(key: Key, number: int) -> Learner:
        say(f"{key[0]} {key[1]}: compiling")
        sized = resize(config, family=key[0], size=key[1], steps=number)
        return Learner(sized, text.vocabulary_size)

    batches = functools.partial(training_batches, build.with_batch_size(config, BATCH), text)
    numbers = dict.fromkeys(keys, steps)
    if equal == "seconds":
        timed = {key: learner(key, steps) for key in keys}
        train(timed, dict.fromkeys(keys, TIMED), batches(TIMED), lambda done, of: None)
        ms = {key: statistics.median(one.step_ms[1:]) for key, one in timed.items()}
        numbers = {key: round(steps * max(ms.values()) / ms[key]) for key in keys}
    learners = {key: learner(key, numbers[key]) for key in keys}
    train(learners, numbers, batches(max(numbers.values())), progress("steps of each"))
    batch = held_out(config, text, HELD_OUT)
    rows = []
    for (family, size), one in learners.items():
        say(f"{family} {size}: held-out loss")
        rows.append(row(one, batch, family=family, size=size))
    edges = [_quantile(config, i / BINS) for i in range(1, BINS)]
    common = {"steps": steps, "equal": equal, "batch": BATCH}
    return {"rows": rows} | common | {"held_out_videos": HELD_OUT, "bin_edges": edges}


def train(
    learners: Mapping[Key, Any],
    numbers: Mapping[Key, int],
    batches: Iterable[Any],
    report: Callable[[int, int], None],
) -> None:
    """Takes each learner's number of steps, in turns; who takes fewer pauses evenly between them.

    Each sees the batches from the first one on.
    """
    streams = dict(zip(learners, itertools.tee(batches, len(learners)), strict=True))
    rounds = max(numbers.values())
    for done in range(1, rounds + 1):
        for key, learner in learners.items():
            if done * numbers[key] // rounds > (done - 1) * numbers[key] // rounds:
                learner.step(next(streams[key]))
        report(done, rounds)


def row(learner: Learner, batch: Batch, *, family: str, size: int) -> dict[str, Any]:
    """Returns size, cost and losses of a trained network, as scaling.json has them."""
    denoiser, params = learner.program.denoiser, learner.state.ema
    by_bin = losses(learner.config, denoiser, params, batch)
    times = learner.step_ms[1:]  # the first one warms up
    return {
        "family": family,
        "size": size,
        "kind": "measured",
        "device": jax.devices()[0].device_kind,
        "steps": len(learner.step_ms),
        "seconds": sum(learner.step_ms) / 1e3,
        **learner.size(),
        "text_encoder_parameters": cost.parameters(params["text_encoder"]),
        "ms_per_step": statistics.median(times),
        "ms_per_step_min": min(times),
        "ms_per_step_max": max(times),
        "held_out_loss": statistics.mean(by_bin),
        "held_out_loss_by_bin": by_bin,
    }


def losses(config: Config, denoiser: Denoiser, params: Params, batch: Batch) -> list[float]:
    """Computes training's loss in each of BINS bins of ln sigma, equally likely there.

    Their mean is the loss over all. N videos have the noise levels of N even places in the bin, one
    each, and noise of their own.
    """
    N = len(batch["video"])
    law = config.diffusion
    weight = sigmas.mean_loss_weight_F(
        law.P_mean, law.P_std, denoiser.sigma_data, denoiser.sigma_in
    )
    video_losses = jax.jit(functools.partial(_losses, denoiser=denoiser))
    bins = []
    for i in range(BINS):
        levels = [_quantile(config, (i + (place + 0.5) / N) / BINS) for place in range(N)]
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        values = video_losses(params, batch, jnp.float32(levels), key)
        bins.append(float(np.asarray(values, np.float64).mean()) / weight)
    return bins


def _losses(
    params: Params,
    batch: dict[str, Array],
    log_sigma: Float[Array, " B"],
    key: PRNGKeyArray,
    denoiser: Denoiser,
) -> Float[Array, " B"]:
    """loss = w |F - c_nrm v|^2 of each video; latents start from those of a first pass."""
    x, conditions = denoiser.encode(batch["video"]), denoiser.conditions(params, batch)
    sigma, eps = jnp.exp(log_sigma), jax.random.normal(key, x.shape)
    sd, si = denoiser.sigma_data, denoiser.sigma_in
    x_sigma = edm.add_noise(x, edm.expand(sigma, x), eps, si)
    latents = denoiser.no_latents(x.shape[0])
    if denoiser.network.latent_shape is not None:
        _, latents = denoiser.F(params, x_sigma, log_sigma, conditions, latents)
    F, _ = denoiser.F(params, x_sigma, log_sigma, conditions, latents)
    return edm.loss_F(F, x, eps, sigma, sd, si)


def _quantile(config: Config, fraction: float) -> float:
    """Returns the ln sigma below which a fraction of training's are."""
    law = config.diffusion
    return statistics.NormalDist(law.P_mean, law.P_std).inv_cdf(fraction)
