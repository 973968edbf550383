"""Data: the user's tables, scikit-learn's bundled sets, synthetic designs, and local files under ``$NATWISE_DATA``."""
