"""Token mixers of one interface, for blocks in place of attention."""
