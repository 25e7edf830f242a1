"""Says what a configuration costs, without hardware and in seconds.

  python -m launch.plan --config=configs/fit_3b9.py --count

--count prints JSON: parameters of the network, and forward_flops_per_video, the floating point
operations of one evaluation of it on one video (a multiply-add is two; element-wise work is not
counted), read from the program that training runs. A text encoder is in neither figure.
Exit codes: 0 done, 2 bad flags or config.
"""

import json

from absl import flags

from launch import main
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import plan

main.define_config()
COUNT = flags.DEFINE_bool("count", False, "Print parameters and FLOPs as JSON.")


def run() -> None:
    """Flags in, JSON out."""
    if not COUNT.value:
        raise ConfigError("say what to plan: --count")
    main.say(json.dumps(plan.count(flags.FLAGS.config)._asdict(), indent=2))


if __name__ == "__main__":
    main.run(run)
