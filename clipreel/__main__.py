"""`python -m clipreel`, which torchrun needs."""

from clipreel.cli import entry

if __name__ == "__main__":
    entry()
