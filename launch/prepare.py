"""Prepares data for training: python -m launch.prepare COMMAND --flags.

  embed       stores the text states of captions, so that training runs no T5 encoder
  pack        stores videos frame by frame at training size, so that training decodes no video
  index       lists what lies where in tar shards, so that training reads any of it
  convert     copies a build of tensorflow-datasets from TFRecord to ArrayRecord, which it reads
  show        draws what any step of training saw
  inspect     draws a page about a data set: sizes, lengths, captions, clips
  redundancy  measures which sigma_in the videos of a data set ask for
  bench       measures how many clips a core draws, and how many cores a run needs

Each command has its own --help.
"""

import runpy
import sys

COMMANDS = ("embed", "pack", "index", "convert", "show", "inspect", "redundancy", "bench")


def main() -> None:
    """Runs the command that the first argument names; without one, says which there are."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in COMMANDS:
        del sys.argv[1]  # the rest are its flags
        runpy.run_module(f"launch.prepare_{command}", run_name="__main__", alter_sys=True)
    elif command in ("-h", "-help", "--help"):
        print(__doc__)
    else:
        names = f"{', '.join(COMMANDS[:-1])} or {COMMANDS[-1]}"
        print(
            f"error: say what to prepare: python -m launch.prepare {names} (see --help)",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
