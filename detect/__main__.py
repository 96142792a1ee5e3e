"""``python -m detect`` is the ``detect`` command."""

from detect.cli import main

if __name__ == "__main__":
    main()
