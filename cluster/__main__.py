"""``python -m cluster``, the same command as ``rethinker``."""

from cluster.cli import main

if __name__ == "__main__":
    main()
