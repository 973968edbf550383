"""`python -m natwise` is the command `natwise`."""

from natwise.cli import main

main()
