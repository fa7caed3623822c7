"""Finished exchanges of un-hooked processes, as OpenTelemetry spans at an OTLP endpoint."""
