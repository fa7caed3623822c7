"""TLS: which targets have a library whose calls the kernel can follow, and which have one that it cannot."""
