"""The listeners, and what is served on them beside the control plane's HTTP."""
