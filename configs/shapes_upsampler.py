"""The upsampler of configs/shapes_fit.py: 8 frames of 32 x 32 -> 64 x 64 pixels.

  python -m launch.train --config=configs/shapes_upsampler.py --workdir=runs/shapes_upsampler \\
      --config.training.start_from=runs/shapes_fit

It starts from the first stage's EMA (paper 3.5), and its low resolution is corrupted with noise of
a level drawn anew for each video. Samples of both stages:

  python -m launch.sample --checkpoint=runs/shapes_fit --upsampler=runs/shapes_upsampler ...
"""

import math

from ml_collections import ConfigDict

from configs import shapes_fit


def get_config(mesh: str = "replicas") -> ConfigDict:
    """FIT on 8 x 64 x 64: 2,048 patches in 16 groups, the 64 latents of the first stage."""
    config = shapes_fit.get_config(mesh)
    config.data.update(height=64, width=64, low_res=(32, 32))
    # The same world, in pixels of half the side.
    config.data.shapes.update(radius=11.0, speeds=(("slowly", 16.0), ("quickly", 36.0)))
    # What and where is in the low resolution; the noise that hides edges is smaller.
    config.diffusion.update(sigma_in=64 / 64 * math.sqrt(8), P_mean=-0.5)
    config.optimizer.learning_rate = 2.5e-3  # 5e-3 by the square root of the batch
    config.training.update(steps=2600, batch_size=8)
    config.sampling.update(steps=16, sigma_min=0.005, sigma_max=40.0, guidance=0.0)
    config.checkpoint.update(every_steps=200, keep_every=0)
    return config
