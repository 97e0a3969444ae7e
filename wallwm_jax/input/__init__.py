"""Events -> packed batches: statistics, tokens, packing, Grain loading."""
