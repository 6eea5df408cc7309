"""The version of the package. It is here, so that no module imports the package's ``__init__`` from below."""

__version__ = "0.2.0"
