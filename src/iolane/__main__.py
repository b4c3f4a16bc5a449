"""`python -m iolane` is the `iolane` command."""

from iolane.cli.main import main

if __name__ == "__main__":
    main()
