"""Flags that hold several numbers: --steps=8,16,32."""

from absl import flags

flags.disclaim_key_flags()  # --help shows them as flags of the command that defines them


class Parser(flags.ArgumentParser):
    """Numbers between commas; each is read by the parser of one."""

    def __init__(self, one: flags.IntegerParser | flags.FloatParser):
        self._one = one
        self.syntactic_help = f"comma-separated, each {one.syntactic_help}"

    def parse(self, argument: str) -> list:
        """ValueError if one is no such number."""
        return [self._one.parse(number) for number in argument.split(",")]

    def flag_type(self) -> str:
        """As --help says it."""
        return f"comma-separated list of {self._one.flag_type()}"


def define_integers(
    name: str, text: str, lower_bound: int | None = None, upper_bound: int | None = None
) -> flags.FlagHolder[list[int] | None]:
    """A flag of whole numbers, None where it is not given; `text` is its help."""
    return _define(flags.IntegerParser(lower_bound, upper_bound), name, text)


def define_floats(
    name: str, text: str, lower_bound: float | None = None
) -> flags.FlagHolder[list[float] | None]:
    """A flag of numbers, None where it is not given; `text` is its help."""
    return _define(flags.FloatParser(lower_bound), name, text)


def _define(
    one: flags.IntegerParser | flags.FloatParser, name: str, text: str
) -> flags.FlagHolder[list | None]:
    return flags.DEFINE(Parser(one), name, None, text, serializer=flags.ListSerializer(","))
