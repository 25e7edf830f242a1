"""Flags that hold several numbers: --steps=8,16,32."""

from absl import flags

flags.disclaim_key_flags()  # --help lists them under the command that defines them


class Parser(flags.ArgumentParser):
    """Several numbers between commas, each in the syntax of `number`."""

    def __init__(self, number: flags.IntegerParser | flags.FloatParser):
        self._number = number
        self.syntactic_help = f"comma-separated, each {number.syntactic_help}"

    def parse(self, argument: str) -> list:
        """Returns the numbers; raises ValueError if one is none."""
        return [self._number.parse(number) for number in argument.split(",")]

    def flag_type(self) -> str:
        """Returns what --help calls such a flag."""
        return f"comma-separated list of {self._number.flag_type()}"


def define_integers(
    name: str, text: str, lower_bound: int | None = None, upper_bound: int | None = None
) -> flags.FlagHolder[list[int] | None]:
    """Defines a flag of whole numbers; `text` is its help. It is None where the user names none."""
    return _define(flags.IntegerParser(lower_bound, upper_bound), name, text)


def define_floats(
    name: str, text: str, lower_bound: float | None = None
) -> flags.FlagHolder[list[float] | None]:
    """Defines a flag of numbers; `text` is its help. It is None where the user names none."""
    return _define(flags.FloatParser(lower_bound), name, text)


def _define(
    number: flags.IntegerParser | flags.FloatParser, name: str, text: str
) -> flags.FlagHolder[list | None]:
    return flags.DEFINE(Parser(number), name, None, text, serializer=flags.ListSerializer(","))
