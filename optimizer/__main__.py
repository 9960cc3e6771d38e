"""``python -m optimizer`` is ``ml-opt``."""

from optimizer.cli.main import main

if __name__ == "__main__":
    main()
