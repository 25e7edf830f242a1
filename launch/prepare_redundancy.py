"""Measures how redundant a data set is, and the sigma_in that its videos ask for (paper 3.2).

  python -m launch.prepare redundancy --config=configs/fit_500m.py --config.data.path=DIR

Many equal pixels show through more noise, which is what sigma_in makes up for. The paper concludes
s sqrt(T) from the size of the videos; this asks the videos: which noise leaves half of their
variance to the best linear denoiser? In photographs of 64 x 64 pixels, for which EDM's noise was
found, it is 2.83 times the distance from gray to white. Their ratio is the second answer. Where the
two differ by a factor of two or more, try both: docs/shapes_fit.md.

--videos are drawn as training draws them, stills left out. Exit codes: 0 done, 2 bad flags or
config, 3 bad data.
"""

import jax.numpy as jnp
from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import build
from snapvideo_jax.diffusion import edm, redundancy
from snapvideo_jax.errors import DataError
from snapvideo_jax.kinds import Whole

entry.define_config()
VIDEOS = number_flags.define("videos", 64, Whole(1, 100_000), "Videos to look at.")


def run() -> None:
    """Draws from the data that --config names, and says what their spectrum asks for."""
    config = flags.FLAGS.config
    config.model.text_encoder.source = "trained"  # captions do not matter
    build.check(config)
    source = build.source(config, screen.replacements())
    report, power = screen.progress("videos"), []
    for g in range(VIDEOS.value):
        video = source.example(g, False)[0]
        power.append(redundancy.power_spectrum(edm.from_pixels(jnp.asarray(video)[None])))
        report(g + 1, VIDEOS.value)
    try:
        noise = redundancy.half_noise_level(jnp.mean(jnp.stack(power), axis=0))
    except ValueError as error:
        raise DataError(str(error)) from error
    T, H, W = power[0].shape
    screen.say(
        f"{VIDEOS.value} videos of {T} x {H} x {W}: noise of {noise:.3g} leaves half of their "
        f"variance, in 64 px photographs {redundancy.PHOTOGRAPHS_64:.3g} does\n"
        f"sigma_in by the spectrum          {noise / redundancy.PHOTOGRAPHS_64:.3g}\n"
        f"sigma_in by the size, s sqrt(T)   {redundancy.sigma_in_by_size(T, H, W):.3g}\n"
        f"diffusion.sigma_in of the config  {config.diffusion.sigma_in:.3g}"
    )


if __name__ == "__main__":
    entry.run(run)
