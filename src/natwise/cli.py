"""cli."""


def main() -> None:
    """Run."""
