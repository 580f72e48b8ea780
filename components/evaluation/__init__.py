"""What a frozen backbone knows, in numbers that say how sure they are."""
