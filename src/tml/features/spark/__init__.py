"""The engine beyond one machine: the definitions of `tml.features` on PySpark."""
