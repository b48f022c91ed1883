"""`python -m isobit` is the `isobit` command."""

from isobit.launch.cli.main import main  # pyright: ignore[reportMissingImports]

main()
