"""DiT 500M, FIT 500M's rival at equal parameters, at 16 x 36 x 64: 500,190,000 parameters.

  python -m launch.train --config=configs/dit_500m.py --workdir=W --config.data.path=DIR \\
      --config.data.text_states=STATES

A diffusion transformer on the same patches of 4 x 4 pixels, all of which attend to each other. The
paper has none: it stands here since what video models are compared with is a DiT. A call takes 4.4
times the FLOPs of FIT 500M's; configs/dit_114m.py takes as many. Training has its blocks in a loop
for the compiler's sake: --config.model.dit.unroll=30 is faster, and takes a TPU's compiler half an
hour (docs/rivals.md).
"""

from ml_collections import ConfigDict

from configs import fit_500m


def get_config(mesh: str = "replicas") -> ConfigDict:
    """The defaults of base.py's DiT; Adam as for the U-Nets, whose rate is DiT's too."""
    config = fit_500m.get_config(mesh)
    config.model.name = "dit"
    config.diffusion.self_conditioning = 0.0  # a DiT has no latents to carry
    config.optimizer.update(name="adam", learning_rate=1e-4, b2=0.999, eps=1e-8)
    return config
