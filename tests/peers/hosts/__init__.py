"""What servers of other projects load of ours: they run in environments of their own."""
