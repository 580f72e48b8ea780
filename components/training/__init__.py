"""One loop for everything that is trained, on one process or many."""
