"""`python -m reasonforge` is the command `reasonforge`."""

from reasonforge.cli import main

main()
