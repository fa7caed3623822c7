"""Pure decoders: bytes in, entry out."""
