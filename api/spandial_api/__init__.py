"""The control plane: rules, their store, and the HTTP interface. Knows no kernel."""
