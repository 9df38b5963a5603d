"""stillhouse keeps the small model inside an agent fresh."""

__all__ = ["__version__"]

__version__ = "0.1.0"
