"""Says what a configuration costs and how it would be split, without hardware and in seconds.

  python -m launch.plan --config=configs/fit_3b9.py --count
  python -m launch.plan --config=configs/fit_3b9.py --config.mesh.fsdp=16 --doctor --devices=16

--count prints JSON: parameters of the network, and forward_flops_per_video, the floating point
operations of one evaluation of it on one video (a multiply-add is two; element-wise work is not
counted), read from the program that training runs. A text encoder is in neither figure.

--doctor prints where every parameter would lie on a mesh over --devices, what a device would hold,
what is held more than once, everything that does not divide, and the sizes that would
(docs/sharding.md). --json=FILE writes the same as JSON. A vocabulary that is made at the start of
a run is taken at its largest.

Exit codes: 0 done, 2 bad flags or config, or a mesh that cannot be, 5 FILE cannot be written.
"""

import json

import jax
from absl import flags

from launch import main
from snapvideo_jax import build, storage
from snapvideo_jax.build import Config
from snapvideo_jax.data import text
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.parallel import doctor, doctor_table, plan

main.define_config()
COUNT = flags.DEFINE_bool("count", False, "Print parameters and FLOPs as JSON.")
DOCTOR = flags.DEFINE_bool("doctor", False, "Print how the mesh splits the model.")
DEVICES = flags.DEFINE_integer(
    "devices", None, "Devices that the mesh is laid over; default: those at hand.", lower_bound=1
)
JSON = flags.DEFINE_string("json", None, "File for what the doctor found.")


def run() -> None:
    """Flags in, JSON or tables out."""
    if not COUNT.value and not DOCTOR.value:
        raise ConfigError("say what to plan: --count or --doctor")
    if COUNT.value:
        main.say(json.dumps(plan.count(flags.FLAGS.config)._asdict(), indent=2))
    if DOCTOR.value:
        report(diagnose(flags.FLAGS.config, DEVICES.value or jax.device_count()))


def diagnose(config: Config, num_devices: int) -> doctor.Diagnosis:
    """The doctor's view of a config on so many devices, which need not be there."""
    vocabulary, training = config.data.vocabulary, config.training
    size = text.Tokenizer(vocabulary).vocabulary_size if vocabulary else text.MAX_VOCABULARY
    made = build.denoiser(config, size)
    params = jax.eval_shape(lambda: made.init(jax.random.key(0), build.blank_batch(config)))
    how = training.batch_size, training.accumulate
    return doctor.examine(made, params, config.mesh.to_dict(), num_devices, *how)


def report(found: doctor.Diagnosis) -> None:
    """Prints tables, writes --json; ConfigError if there are problems."""
    main.say(doctor_table.text(found))
    if JSON.value:
        content = json.dumps(doctor_table.tree(found), indent=2)
        storage.write(JSON.value, content.encode() + b"\n")
    if found.problems:
        raise ConfigError(f"{found.problems[0]} (problems in all: {len(found.problems)})")


if __name__ == "__main__":
    main.run(run)
