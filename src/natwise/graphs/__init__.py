"""Learning on graphs: which distances between nodes carry information.

The exported names stand in `__init__.pyi`, one line per method, and are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
