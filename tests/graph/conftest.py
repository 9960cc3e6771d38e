from exporting.fixtures import arch

__all__ = ["arch"]
