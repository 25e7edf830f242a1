"""Factorised DiT 500M, at 16 x 36 x 64: 505,731,888 parameters.

  python -m launch.train --config=configs/dit_factorised_500m.py --workdir=W \\
      --config.data.path=DIR --config.data.text_states=STATES

As configs/dit_500m.py, but a block attends over space, then over time (STDiT): 3.4 times the FLOPs
of FIT 500M's call; configs/dit_factorised_158m.py takes as many.
"""

from ml_collections import ConfigDict

from configs import dit_500m


def get_config(mesh: str = "replicas") -> ConfigDict:
    """DiT 500M with fewer blocks, since a block has one attention more."""
    config = dit_500m.get_config(mesh)
    config.model.dit.update(blocks=24, factorised=True)
    return config
