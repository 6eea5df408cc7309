"""Run the command line: ``python -m jobqueue`` does the same as ``jobqueue``."""

from jobqueue.cli import main

if __name__ == "__main__":
    main()
