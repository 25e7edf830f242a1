"""Flags that hold a number, or several between commas: --steps=8,16,32."""

from typing import Any

from absl import flags

from snapvideo_jax.kinds import Number, Several

flags.disclaim_key_flags()  # --help lists them under the command that defines them


class Parser(flags.ArgumentParser):
    """Reads a flag's text as a value of `kind`."""

    def __init__(self, kind: Number | Several):
        self._kind = kind
        self.syntactic_help = str(kind)

    def parse(self, argument: Any) -> Any:
        """Returns the value; raises ValueError, with what it must be, if it is of another kind."""
        value = self._kind.read(argument) if isinstance(argument, str) else argument
        if not self._kind.holds(value):
            raise ValueError(f"must be {self._kind}")
        return value

    def flag_type(self) -> str:
        """Returns what --help calls such a flag."""
        return "numbers" if isinstance(self._kind, Several) else "number"


def define(name: str, default: Any, kind: Number | Several, text: str) -> flags.FlagHolder:
    """Defines a flag that holds a value of `kind`, or None by default; `text` is its help."""
    several = isinstance(kind, Several)
    serializer = flags.ListSerializer(",") if several else flags.ArgumentSerializer()
    return flags.DEFINE(Parser(kind), name, default, text, serializer=serializer)
