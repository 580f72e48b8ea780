"""Everything that was found, on one page that opens anywhere."""
