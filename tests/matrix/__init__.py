"""Settings in combination: which go together, and that those which do are synthesized, linted and checked."""
