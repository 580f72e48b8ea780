"""A language model given eyes: PaliGemma's recipe around a backbone of one's own."""
