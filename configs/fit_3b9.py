"""FIT 3.9B, the paper's largest first stage at 16 x 36 x 64 (Table 8): 3,914,472,496 parameters.

  python -m launch.prepare embed --config=configs/fit_3b9.py --config.data.path=DIR \\
      --t5=T5 --out=STATES
  python -m launch.train --config=configs/fit_3b9.py --workdir=W --config.data.path=DIR \\
      --config.data.text_states=STATES --config.mesh.fsdp=16

Parameters, EMA and both moments of LAMB are 62.6 GB in float32 (4 x 15.7), so they must be split
over chips: mesh.fsdp. By the compiler's prediction v5e-16 takes --config.training.accumulate=128
with the flag above, and v5p-128 --config.mesh.data=4 beside it and accumulate=4 (docs/plan.md).
"""

from ml_collections import ConfigDict

from configs import fit_500m


def get_config(mesh: str = "replicas") -> ConfigDict:
    """FIT 500M with the widths of the second column of Table 8."""
    config = fit_500m.get_config(mesh)
    config.model.conditioning_channels = 1024
    config.model.fit.update(
        patch_channels=1024,
        latents=768,
        latent_channels=3072,
        patch_head_channels=64,
        latent_head_channels=128,
    )
    return config
