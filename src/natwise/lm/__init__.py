"""Language models: recursion over shared layers, cheaper training, better starts, reasoning in continuous steps.

The exported names stand in `__init__.pyi`, one line per method, and are imported on first use.
"""

from natwise.core.rooms import open_room

__getattr__, __dir__, __all__ = open_room(__name__, __file__)
