from .build import build_optimizer, old_name

__all__ = ["build_optimizer", "old_name"]
