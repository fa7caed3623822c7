"""The kernel side: probe the host, load and attach BPF programs, read what they counted."""
