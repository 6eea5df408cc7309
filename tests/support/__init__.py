"""Code that several test modules share. The fixtures are in the files conftest.py."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The project's root directory."""

SOAK = os.environ.get("JOBQUEUE_TEST_SOAK") == "1"
"""Whether to run the long form of some tests: thousands of clients, real limits, and all benchmarks."""
