"""The run-time type checker of the tests: beartype, where an int is a float as in Python's types."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
