from benching.small import small_store

__all__ = ["small_store"]
