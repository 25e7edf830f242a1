"""Says what a configuration costs, how it would be split, and whether it fits, without hardware.

  python -m launch.plan --config=configs/fit_3b9.py --count
  python -m launch.plan --config=configs/fit_3b9_upsampler.py:groups --doctor --devices=16

  python -m launch.plan --config=configs/fit_3b9.py:fsdp --config.training.accumulate=128 \\
      --topology=v5e-16

--count prints JSON: parameters of the network, and forward_flops_per_video, the floating point
operations of one call of it on one video (a multiply-add is two; element-wise work is not
counted), read from the program that training runs. A text encoder is in neither figure.

--doctor prints where every parameter would lie on a mesh over --devices, what a device would hold,
what is held more than once, everything that does not divide, and the sizes that would
(docs/shard.md). A vocabulary that a run makes at its start is taken at its largest.

--topology=NAME gives the training step, or with --program=sample a call of the sampler for
training.batch_size prompts, to the TPU's own compiler for a slice that you need not have: v5e-16
(also v5litepod-16), v5p-128, v6e-64, v4-32, or a shape such as v5p:4x4x4. It prints whether it fits
and how long it should take, then what fills a chip's memory, where the time goes, and what the
chips send each other (docs/plan.md says how far to trust that). What does not fit is named,
with the change that should help. This needs libtpu, not a TPU. configs/shapes.py takes half a
minute; a training step of the paper's models takes 10 to 40 minutes on two cores and up to 7 GB of
host memory. The answer is cached: the same question is answered at once.

--search ranks meshes (data, fsdp, tensor; group for upsamplers), remat, dtype and micro-batches for
--topology by closed forms, compiles the best few, as long as above for each, and says which trains
fastest.

--topology=measure runs the program on the devices at hand instead, beside what their data sheet (or
two microbenchmarks, where there is none) predicts.

--json=FILE writes the answer of any of these as JSON too.

Exit codes: 0 done, 2 bad flags or config, a mesh that cannot be, or a program that does not fit,
5 FILE cannot be written.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from launch import entry, number_flags, screen
from snapvideo_jax import build, storage
from snapvideo_jax.benchmark import prediction
from snapvideo_jax.build import Config
from snapvideo_jax.data import text
from snapvideo_jax.errors import ConfigError
from snapvideo_jax.kinds import Whole
from snapvideo_jax.planner import (
    doctor,
    doctor_table,
    estimate,
    estimate_table,
    programs,
    search,
    search_table,
    topology,
)
from snapvideo_jax.units import size_text

entry.define_config()
COUNT = flags.DEFINE_bool("count", False, "Print parameters and FLOPs as JSON.")
DOCTOR = flags.DEFINE_bool("doctor", False, "Print how the mesh splits the model.")
DEVICES = number_flags.define(
    "devices",
    None,
    Whole(1, 2**20),
    "Devices of the mesh; default: --topology's, or those at hand.",
)
TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU slice to compile a program for, as v5e-16; or: measure."
)
SEARCH = flags.DEFINE_bool("search", False, "Look for the fastest layout on --topology.")
CANDIDATES = number_flags.define(
    "candidates", 3, Whole(1, 1000), "Meshes that --search compiles beside plain fsdp."
)
PROGRAM = flags.DEFINE_enum("program", "train", programs.KINDS, "What --topology compiles.")
JSON = entry.define_file("json", "File for the answer as JSON.")


def run() -> None:
    """Prints what the flags name: a count, a diagnosis or a plan."""
    if SEARCH.value and TOPOLOGY.value in (None, "measure"):
        raise ConfigError("--search needs the slice to search on: --topology=v5p-64")
    answers = sum(map(bool, (COUNT.value, DOCTOR.value, TOPOLOGY.value)))
    if not answers:
        raise ConfigError("say what to plan: --count, --doctor or --topology=SLICE")
    if answers > 1:
        entry.refuse_unread("one answer: --count, --doctor or --topology=SLICE alone", JSON)
    if not DOCTOR.value:
        entry.refuse_unread("--doctor", DEVICES)
    if not SEARCH.value:
        entry.refuse_unread("--search", CANDIDATES)
    if not TOPOLOGY.value or SEARCH.value:
        entry.refuse_unread("--topology=SLICE without --search", PROGRAM)
    config = build.check_without_data(flags.FLAGS.config)
    if COUNT.value:
        count = estimate.count(config)._asdict()
        screen.say(json.dumps(count, indent=2))
        write(count)
    if DOCTOR.value:
        report(diagnose(config, DEVICES.value or num_devices()))
    if TOPOLOGY.value == "measure":
        measure(config)
    elif TOPOLOGY.value:
        plan = fastest_layout if SEARCH.value else one_program
        plan(config, TOPOLOGY.value)


def one_program(config: Config, name: str) -> None:
    """Prints what the compiler of a slice says of a program.

    Raises ConfigError, with what to change, if it does not fit.
    """
    jax.config.update("jax_platforms", "cpu")  # libtpu is here to compile, not to be looked for
    chips = topology.devices(name)
    program = programs.planned(config, PROGRAM.value, chips)
    screen.say(
        f"compiling for {describe(chips)}; the first time that takes half a minute for a toy, "
        "10 to 40 minutes for the paper's models"
    )
    answer = estimate.estimate(program, chips, entry.cache_folder() / "plans")
    screen.say(estimate_table.text(answer))
    write(estimate_table.tree(answer))
    if not answer.fits:
        raise ConfigError(f"it does not fit {name}; {remedy(config, chips, answer)}")


def remedy(config: Config, chips: Sequence[jax.Device], refusal: estimate.Estimate) -> str:
    """Says which change should make it fit at the least cost."""
    if PROGRAM.value != "train":
        return "lower training.batch_size, split the parameters (mesh.fsdp), or take a larger slice"
    screen.say("looking for what would fit")
    config.mesh.update(refusal.mesh)  # as numbers, where it left one open
    layouts = search.below_limit(
        search.candidates(config, chips),
        config,
        total=refusal.total,
        limit=0.9 * refusal.limit,  # with something to spare
    )
    if not layouts:
        return "nor should any other layout; take a larger slice or a smaller training.batch_size"
    here = config.model.dtype, refusal.mesh
    best = next((each for each in layouts if (each.dtype, each.mesh) == here), layouts[0])
    return f"try {' '.join(search_table.flags(best))} (about {size_text(best.memory)} a chip)"


def fastest_layout(config: Config, name: str) -> None:
    """Compiles the most promising ways to lay training out on a slice, and ranks them."""
    jax.config.update("jax_platforms", "cpu")
    chips = topology.devices(name)
    screen.say(f"searching for the fastest layout on {describe(chips)}")
    layouts = search.candidates(config, chips)
    shortlist = search.shortlist(layouts, len(chips), CANDIDATES.value)
    screen.say(f"{len(layouts)} layouts divide and should fit; compiling {len(shortlist)} of them")
    progress, rows = screen.progress("layouts compiled"), []
    for number, layout in enumerate(shortlist, start=1):
        program = programs.planned(layout.apply(config), "train", chips)
        answer = estimate.estimate(program, chips, entry.cache_folder() / "plans")
        rows.append((layout, answer))
        screen.say(search_table.row(layout, answer))
        progress(number, len(shortlist))
    screen.say(search_table.ranking(rows))
    write(search_table.ranking_tree(rows))


def measure(config: Config) -> None:
    """Runs a program on the devices at hand, and prints its time beside the prediction."""
    program = programs.planned(config, PROGRAM.value, jax.devices())
    screen.say(f"compiling and running on {describe(jax.devices())}")
    comparison = prediction.compare(program)
    screen.say(estimate_table.compare(comparison))
    rates = comparison.rates._asdict()
    write(comparison._asdict() | {"rates": rates, "error": comparison.error})


def describe(chips: Sequence[jax.Device]) -> str:
    """Returns the number and kind of chips: "16 x TPU v5 lite"."""
    return f"{len(chips)} x {chips[0].device_kind}"


def num_devices() -> int:
    """Returns the number of devices of --topology=SLICE, or of those at hand."""
    if TOPOLOGY.value in (None, "measure"):
        return jax.device_count()
    jax.config.update("jax_platforms", "cpu")
    return len(topology.devices(TOPOLOGY.value))


def write(tree: Any) -> None:
    """Writes the file --json, if there is to be one."""
    if JSON.value:
        storage.write(JSON.value, json.dumps(tree, indent=2).encode() + b"\n")


def diagnose(config: Config, num_devices: int) -> doctor.Diagnosis:
    """Examines a config on so many devices, which need not be there."""
    vocabulary = config.data.vocabulary
    size = text.Tokenizer(vocabulary).vocabulary_size if vocabulary else text.MAX_VOCABULARY
    denoiser, params = build.abstract_model(config, size)
    return doctor.examine(
        denoiser,
        params,
        sizes=config.mesh.to_dict(),
        num_devices=num_devices,
        batch_size=config.training.batch_size,
        accumulate=config.training.accumulate,
    )


def report(diagnosis: doctor.Diagnosis) -> None:
    """Prints the tables of a diagnosis and writes --json; raises ConfigError for a problem."""
    screen.say(doctor_table.text(diagnosis))
    write(doctor_table.tree(diagnosis))
    problems = diagnosis.problems
    if problems:
        raise ConfigError(f"{problems[0]} (problems in all: {len(problems)})")


if __name__ == "__main__":
    entry.run(run)
