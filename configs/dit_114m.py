"""DiT 114M, FIT 500M's rival at equal FLOPs, at 16 x 36 x 64: 114,314,544 parameters.

  python -m launch.train --config=configs/dit_114m.py --workdir=W --config.data.path=DIR \\
      --config.data.text_states=STATES

Its call takes 0.999 times the FLOPs of FIT 500M's. Training has its blocks written out, as FIT's.
"""

from ml_collections import ConfigDict

from configs import dit_500m


def get_config(mesh: str = "replicas") -> ConfigDict:
    """DiT 500M, narrower and of fewer blocks."""
    config = dit_500m.get_config(mesh)
    config.model.dit.update(channels=768, blocks=11, unroll=11)
    return config
