"""What is known of other processes: from /proc, from sockets, and from the pages that they share."""
