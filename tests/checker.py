"""How annotations are checked while tests run; an int passes for a float, as in Python's rules."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
