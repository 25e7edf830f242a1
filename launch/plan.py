"""Says what a configuration costs, how it would be split, and whether it fits, without hardware.

  python -m launch.plan --config=configs/fit_3b9.py --count
  python -m launch.plan --config=configs/fit_3b9_upsampler.py:groups --doctor --devices=16

  python -m launch.plan --config=configs/fit_3b9.py:fsdp --config.training.accumulate=256 \\
      --topology=v5e-16

--count prints JSON: parameters of the network, and forward_flops_per_video, the floating point
operations of one evaluation of it on one video (a multiply-add is two; element-wise work is not
counted), read from the program that training runs. A text encoder is in neither figure.

--doctor prints where every parameter would lie on a mesh over --devices, what a device would hold,
what is held more than once, everything that does not divide, and the sizes that would
(docs/sharding.md). A vocabulary that is made at the start of a run is taken at its largest.
--json=FILE writes what was counted or found as JSON, here and below.

--topology=NAME gives the training step, or with --program=sample an evaluation of the sampler for
training.batch_size prompts, to the TPU's own compiler for a slice that you need not have (v5e-16,
v5p-128, v6e-64, v4-32, or by shape as v5p:4x4x4). It prints whether it fits, what fills a chip's
memory, how long it should take, and what the chips send each other (docs/planning.md says how far
to trust that). It takes minutes and needs libtpu, not a TPU; the answer is kept, and the same
question is answered at once. What does not fit is named, with the change that should help.

--search ranks meshes (data, fsdp, tensor; group for upsamplers), remat, dtype and micro-batches for
--topology by closed forms, compiles the best few and says which trains fastest.

--topology=measure runs the program on the devices at hand instead, beside what their data sheet (or
two microbenchmarks, where there is none) predicts.

Exit codes: 0 done, 2 bad flags or config, a mesh that cannot be, or a program that does not fit,
5 FILE cannot be written.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from launch import entry, screen
from snapvideo_jax import build, storage
from snapvideo_jax.benchmark import prediction
from snapvideo_jax.build import Config
from snapvideo_jax.data import text
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.planner import (
    doctor,
    doctor_table,
    estimate,
    estimate_table,
    programs,
    search,
    topology,
)
from snapvideo_jax.planner.doctor_table import size_text

entry.define_config()
COUNT = flags.DEFINE_bool("count", False, "Print parameters and FLOPs as JSON.")
DOCTOR = flags.DEFINE_bool("doctor", False, "Print how the mesh splits the model.")
DEVICES = flags.DEFINE_integer(
    "devices", None, "Devices that the mesh is laid over; default: those at hand.", lower_bound=1
)
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile a program for.")
SEARCH = flags.DEFINE_bool("search", False, "Look for the fastest layout on --topology.")
CANDIDATES = flags.DEFINE_integer(
    "candidates", 3, "Meshes that --search compiles beside plain fsdp.", lower_bound=1
)
PROGRAM = flags.DEFINE_enum("program", "train", programs.KINDS, "What --topology compiles.")
JSON = flags.DEFINE_string("json", None, "File for what was counted or found, as JSON.")


def run() -> None:
    """Flags in, JSON or tables out."""
    if SEARCH.value and TOPOLOGY.value in (None, "measure"):
        raise ConfigError("--search needs the slice to search on: --topology=v5p-64")
    if not COUNT.value and not DOCTOR.value and not TOPOLOGY.value:
        raise ConfigError("say what to plan: --count, --doctor or --topology=SLICE")
    config = plannable(flags.FLAGS.config)
    if COUNT.value:
        counted = estimate.count(config)._asdict()
        screen.say(json.dumps(counted, indent=2))
        write(counted)
    if DOCTOR.value:
        report(diagnose(config, DEVICES.value or jax.device_count()))
    if TOPOLOGY.value == "measure":
        measure(config)
    elif TOPOLOGY.value:
        do = fastest if SEARCH.value else on_slice
        do(config, TOPOLOGY.value)


def on_slice(config: Config, name: str) -> None:
    """Prints what the compiler says of a program; ConfigError if it does not fit."""
    jax.config.update("jax_platforms", "cpu")  # libtpu is here to compile, not to be looked for
    chips = topology.devices(name)
    program = programs.program(config, PROGRAM.value, chips)
    screen.say(f"compiling for {described(chips)}; minutes, if it is the first time")
    verdict = estimate.compiled(program, chips, entry.cache_folder() / "plans")
    screen.say(estimate_table.text(verdict))
    write(estimate_table.tree(verdict))
    if not verdict.fits:
        raise ConfigError(f"it does not fit {name}; {remedy(config, chips, verdict)}")


def remedy(config: Config, chips: Sequence[jax.Device], refused: estimate.Verdict) -> str:
    """The change that should make it fit at the least cost."""
    if PROGRAM.value != "train":
        return "lower training.batch_size, split the parameters (mesh.fsdp), or take a larger slice"
    screen.say("looking for what would fit")
    config.mesh.update(refused.mesh)  # as numbers, where it left one open
    room = 0.9 * refused.limit  # with something to spare
    found = search.roomier(search.candidates(config, chips), config, refused.total, room)
    if not found:
        return "nor should any other layout; take a larger slice or a smaller training.batch_size"
    here = config.model.dtype, refused.mesh
    best = next((each for each in found if (each.dtype, each.mesh) == here), found[0])
    return f"try {' '.join(estimate_table.flags(best))} (about {size_text(best.memory)} a chip)"


def fastest(config: Config, name: str) -> None:
    """Compiles the most promising ways to lay training out on a slice, and ranks them."""
    jax.config.update("jax_platforms", "cpu")
    chips = topology.devices(name)
    screen.say(f"searching for the fastest layout on {described(chips)}")
    found = search.candidates(config, chips)
    chosen = search.shortlist(found, len(chips), CANDIDATES.value)
    screen.say(f"{len(found)} layouts divide and should fit; compiling {len(chosen)} of them")
    tell, rows = screen.progress("layouts compiled"), []
    for number, each in enumerate(chosen, start=1):
        program = programs.program(each.apply(config), "train", chips)
        rows.append((each, estimate.compiled(program, chips, entry.cache_folder() / "plans")))
        screen.say(estimate_table.row(*rows[-1]))
        tell(number, len(chosen))
    screen.say(estimate_table.ranking(rows))
    write(estimate_table.ranking_tree(rows))


def measure(config: Config) -> None:
    """Runs a program on the devices at hand, and prints its time beside the prediction."""
    program = programs.program(config, PROGRAM.value, jax.devices())
    screen.say(f"compiling and running on {described(jax.devices())}")
    found = prediction.compared(program, build.DTYPES[config.model.dtype])
    screen.say(estimate_table.compared(found))
    write(found._asdict() | {"rates": found.rates._asdict(), "error": found.error})


def described(chips: Sequence[jax.Device]) -> str:
    """16 x TPU v5 lite."""
    return f"{len(chips)} x {chips[0].device_kind}"


def plannable(config: Config) -> Config:
    """The config, checked; its data need not be there yet."""
    for field in ("path", "text_states"):
        config.data[field] = config.data[field] or "unnamed"
    build.check(config)
    return config


def write(tree: Any) -> None:
    """--json, if it is given."""
    if JSON.value:
        storage.write(JSON.value, json.dumps(tree, indent=2).encode() + b"\n")


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
    screen.say(doctor_table.text(found))
    write(doctor_table.tree(found))
    if found.problems:
        raise ConfigError(f"{found.problems[0]} (problems in all: {len(found.problems)})")


if __name__ == "__main__":
    entry.run(run)
