"""``python -m jobqueue`` is ``jobqueue``."""

from jobqueue.cli import main

if __name__ == "__main__":
    main()
