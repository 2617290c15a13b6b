"""Quality: row rules, duplicates and contamination."""

from tasks.quality.duplicates import exact_duplicates, fingerprints

__all__ = ["exact_duplicates", "fingerprints"]
