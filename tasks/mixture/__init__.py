"""The mixture: which conversations go into which split, and in what shares."""

from tasks.mixture.schema import SharePart, Split, TokenisedMixture

__all__ = ["SharePart", "Split", "TokenisedMixture"]
