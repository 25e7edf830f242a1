"""FIT 3.9B upsampler, 36 x 64 -> 288 x 512 (Table 8): 3,921,011,760 parameters.

  python -m launch.train --config=configs/fit_3b9_upsampler.py:groups --workdir=W2 \\
      --config.data.path=DIR --config.data.text_states=STATES \\
      --config.training.start_from=W1

W1 is a run of configs/fit_3b9.py, from whose EMA this one starts (paper 3.5); without it the run
starts from nothing. Samples: python -m launch.sample --checkpoint=W1 --upsampler=W2 ...
"""

from ml_collections import ConfigDict

from configs import fit_3b9


def get_config(mesh: str = "replicas") -> ConfigDict:
    """The third column of Table 8, with the upsampler's rows of Table 9."""
    config = fit_3b9.get_config(mesh)
    config.data.update(height=288, width=512, pad_rows=0, low_res=(36, 64))
    config.model.remat = "block"  # a video has 58 times the first stage's patches
    config.model.fit.group = (16, 18, 16)
    config.model.fit.unroll = 1  # little is kept of a block, so a loop costs little
    config.diffusion.sigma_in = 32.0  # 8 times the side of 64 pixels, times sqrt(16 frames), 3.2
    config.training.update(steps=370_000, batch_size=320)
    config.sampling.update(steps=40, guidance=1.0, oscillate=False)  # 40 steps, 3.6; the rest open
    return config
