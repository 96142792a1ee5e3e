"""``python -m detect`` is the ``detect`` command."""

from dpipe.starting import detect

if __name__ == "__main__":
    detect()
