"""The MIMIC-III clinical time-series benchmark: built exactly, on your machine; its features, models and metrics.

The exported names stand in `__init__.pyi` and are imported on first use: building needs polars but not torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
