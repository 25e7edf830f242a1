"""Trains FITs, U-Nets and DiTs of four sizes on moving shapes and compares what they reach.

  python -m launch.scaling --out=DIR
  python -m launch.scaling --steps=3000 --sizes=1,2 --networks=fit,dit --out=DIR
  python -m launch.scaling --equal=seconds --sizes=1,2 --out=DIR

Networks of one size have equally many parameters. All see the same examples in turns, on the first
device; data are those of configs/shapes.py. They take the same number of steps, or with
--equal=seconds as many as fit into the time that --steps of the slowest take. The held-out loss is
that of the EMA on captions never shown, over all noise levels and in six ranges of them. FIT and
U-Net alone take 27 minutes on two CPU cores (measured). It needs neither tensorflow nor clu.
Stopped, it starts from the beginning.

DIR gets scaling.json, scaling.md and two pictures. What they show and what they do not:
docs/scaling.md.

Exit codes: 0 done, 2 bad flags, 5 DIR cannot be written.
"""

import jax
from absl import flags

from launch import entry, number_flags, provenance, screen, study_report
from snapvideo_jax import fields, storage
from snapvideo_jax.kinds import Several, Whole
from snapvideo_jax.studies.scaling import plots, report, study

OUT = entry.define_folder("out", "Folder for the report.")
STEPS = number_flags.define(
    "steps", 400, fields.STEPS, f"Training steps, with {study.BATCH} videos each."
)
NETWORKS = flags.DEFINE_list(
    "networks", list(study.FAMILIES), f"Some of {', '.join(study.FAMILIES)}; default: all."
)
EQUAL = flags.DEFINE_enum("equal", "steps", study.EQUAL, "What all networks have alike.")
SIZES = number_flags.define(
    "sizes", None, Several(Whole(1, 1000), 1, 4), "Some of 1,2,3,4; default: all."
)


def run() -> None:
    """Trains the networks that the flags name, and writes the report to a folder."""
    sizes = SIZES.value or list(study.SIZES)
    study.check(NETWORKS.value, sizes, STEPS.value)
    folder = storage.make_folder(OUT.value)
    config = entry.load_config("configs/shapes.py")
    text = study_report.text_of(config, folder)
    before = provenance.facts("launch.scaling", jax.devices())  # and the load before
    result = study.run(
        config,
        families=NETWORKS.value,
        sizes=sizes,
        steps=STEPS.value,
        equal=EQUAL.value,
        text=text,
        say=screen.say,
        progress=screen.progress,
    )
    tree = result | before
    pictures = plots.pngs(tree)
    study_report.write(
        folder,
        "scaling",
        study=tree,
        markdown=report.markdown(tree, pictures),
        pictures=pictures,
        tables=report.tables(tree),
    )


if __name__ == "__main__":
    entry.run(run)
