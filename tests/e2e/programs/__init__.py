"""Clients and servers as processes of their own, without the hook: each says exactly what it did."""
