"""Whether trace contexts arrive: pairs of targets between which something loses them."""
