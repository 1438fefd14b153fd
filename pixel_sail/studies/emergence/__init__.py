"""When grounding emerges: the position in an answer of the phrase with the best mask."""
