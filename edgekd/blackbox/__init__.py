"""Teachers of which only the answers can be had: asked with care for time, money and what has been answered."""
