"""Networks and the small pieces around them."""
