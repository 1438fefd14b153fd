"""When grounding emerges: where in an answer the phrase stands whose mask is best."""
