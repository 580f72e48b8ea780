"""Small things that make a frozen backbone useful."""
