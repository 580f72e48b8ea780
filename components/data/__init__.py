"""From files of any kind to validated rows and packed pixels, and from those to views."""
