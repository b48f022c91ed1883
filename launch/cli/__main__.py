"""`python -m isobit.launch.cli` is the `isobit` command."""

from .main import main

main()
