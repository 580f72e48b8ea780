"""Commands that are no DVC stage: `check`, and the program `selfsight` over the stages."""
