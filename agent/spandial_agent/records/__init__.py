"""Records of the ring buffer: what they say, and who watches them."""
