"""``python -m mergeloom``, for where the scripts of an environment are not on the path."""

from mergeloom.cli.main import main

if __name__ == "__main__":
    main()
